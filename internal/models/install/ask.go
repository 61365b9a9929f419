package install

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// What an engine says is bounded: a record of progress, and a whole answer.
const (
	maxRecord = 64 << 10
	maxAnswer = 32 << 20
)

// EngineError is what the engine said instead of doing what it was asked.
type EngineError struct {
	Route string
	// Status of the answer; 200 for an error that came after records of progress.
	Status int
	Text   string
}

func (e *EngineError) Error() string { return "engine says to " + e.Route + ": " + e.Text }

// Is tells that 404 means ErrNoModel.
func (e *EngineError) Is(target error) bool {
	return target == ErrNoModel && e.Status == http.StatusNotFound
}

// send sends a body as JSON and returns an answer of 200.
func (i *Installer) send(ctx context.Context, method, route string, body any) (*http.Response, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("ask engine: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, route, bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("ask engine: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := i.deps.Engine.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("ask engine: %w", because(ctx, err))
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRecord))
	if err != nil {
		return nil, fmt.Errorf("ask engine: %w", because(ctx, err))
	}
	said := errorOf(text)
	if said == "" {
		said = resp.Status
	}
	return nil, &EngineError{Route: route, Status: resp.StatusCode, Text: said}
}

// because is why a request failed: the cause of its context's end, if that ended.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// stream sends a request whose answer is records of progress, and passes them on.
func (i *Installer) stream(ctx context.Context, route string, body any, progress func([]byte) error) error {
	resp, err := i.send(ctx, http.MethodPost, route, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 4<<10), maxRecord)
	ended := false
	for lines.Scan() {
		record := bytes.TrimSpace(lines.Bytes())
		if len(record) == 0 {
			continue
		}
		if text := errorOf(record); text != "" {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return &EngineError{Route: route, Status: http.StatusOK, Text: text}
		}
		ended = isSuccess(record)
		if err := progress(record); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read progress: %w", err)
	}
	if !ended {
		return errNoSuccess
	}
	return nil
}

// errorOf is the error that an answer or a record of progress tells; "" if it tells none.
func errorOf(record []byte) string {
	var wire struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(record, &wire) != nil {
		return ""
	}
	return wire.Error
}

func isSuccess(record []byte) bool {
	var wire struct {
		Status string `json:"status"`
	}
	return json.Unmarshal(record, &wire) == nil && wire.Status == "success"
}

// do sends a request whose answer says nothing.
func (i *Installer) do(ctx context.Context, method, route string, body any) error {
	resp, err := i.send(ctx, method, route, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	return err
}

func (i *Installer) copy(ctx context.Context, from, to manifest.Name) error {
	err := i.do(ctx, http.MethodPost, "/api/copy", map[string]string{"source": from.String(), "destination": to.String()})
	if err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	return nil
}

// remove deletes a name, and is content when it is gone already.
func (i *Installer) remove(ctx context.Context, name manifest.Name) error {
	err := i.do(ctx, http.MethodDelete, "/api/delete", map[string]string{"model": name.String()})
	if err != nil && !errors.Is(err, ErrNoModel) {
		return fmt.Errorf("delete name %s: %w", name, err)
	}
	return nil
}

// listed is a model as the engine lists it.
type listed struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

func (i *Installer) list(ctx context.Context) ([]listed, error) {
	resp, err := i.send(ctx, http.MethodGet, "/api/tags", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var wire struct {
		Models []listed `json:"models"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&wire); err != nil {
		return nil, fmt.Errorf("list models: %w", err)
	}
	return wire.Models, nil
}

// digest is the digest of the model that has a name.
func (i *Installer) digest(ctx context.Context, name manifest.Name) (string, error) {
	models, err := i.list(ctx)
	if err != nil {
		return "", err
	}
	for _, m := range models {
		if is, err := manifest.ParseName(m.Name); err == nil && is.Equal(name) {
			digest, _ := manifest.CutDigest("sha256:" + strings.TrimPrefix(m.Digest, "sha256:"))
			return digest, nil
		}
	}
	return "", fmt.Errorf("%w: %s", ErrNoModel, name)
}
