package enginetest

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"strings"
)

// told makes what went wrong with the folder or a registry something that the client is told.
func told(ctx context.Context, err error) error {
	var no *refusal
	if err == nil || errors.Is(err, errSpoilt) || errors.As(err, &no) || ctx.Err() != nil {
		return err
	}
	return &refusal{http.StatusInternalServerError, err.Error()}
}

// public says that a name means the registry that no test is to talk to.
func public(n name) bool { return strings.EqualFold(n.host, defaultHost) }

// pullFiled brings a model into the folder.
func (s *Server) pullFiled(ctx context.Context, wanted string, insecure bool, say func(progress) error) error {
	n := parseName(wanted)
	if public(n) {
		return errNothingToPull
	}
	if err := s.catalog.folder.pull(ctx, n, insecure, say); err != nil {
		return told(ctx, err)
	}
	s.catalog.forget(wanted)
	return say(progress{Status: "success"})
}

// pushFiled sends a model of the folder; is says that it is one.
func (s *Server) pushFiled(ctx context.Context, wanted string, insecure bool, say func(progress) error) (is bool, err error) {
	f := s.catalog.folder
	if f == nil {
		return false, nil
	}
	m, err := f.find(wanted)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return true, told(ctx, err)
	case public(m.name):
		return true, &refusal{http.StatusInternalServerError, "unauthorized: access denied"}
	}
	if err := f.push(ctx, m, insecure, say); err != nil {
		return true, told(ctx, err)
	}
	return true, say(progress{Status: "success"})
}

// createFiled makes a model in the folder, of one there or of blobs; is says that it was asked to.
func (s *Server) createFiled(ctx context.Context, wanted string, req *manageRequest, say func(progress) error) (is bool, err error) {
	f := s.catalog.folder
	if f == nil || req.From == "" && req.Files == nil {
		return false, nil
	}
	if req.From != "" {
		if _, err := f.find(req.From); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
	}
	if err := f.create(wanted, req, say); err != nil {
		return true, told(ctx, err)
	}
	s.catalog.forget(wanted)
	return true, say(progress{Status: "success"})
}
