package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

const (
	idleEvery   = 50 * time.Millisecond
	untilIdle   = 10 * time.Second // then new requests are let wait or go elsewhere, until those under way have ended
	modelSuffix = ".gguf"
)

// errReload ends a run of the engine that is to begin anew.
var errReload = errors.New("it is to see its models anew")

// Folder is the folder of models of a supervised llama-server, which lists a file under its name without .gguf; "" for
// other engines. After every change there, Reload is to be called.
func (e *Engine) Folder() string {
	if e.cfg.Kind != cluster.LlamaServer || e.cfg.Command == "" {
		return ""
	}
	return e.ModelsDir()
}

// Ended is why a supervised engine ended by itself since it was last meant to begin; "" if it did not.
func (e *Engine) Ended() string {
	if why := e.ended.Load(); why != nil {
		return *why
	}
	return ""
}

// Reload has a supervised llama-server see what is in its folder now. One with several models reads the folder again, and goes
// on with what it serves. One with a single model, or none, is started anew, never while it serves a request: in the first idle
// moment, or, when there is none for a while, after it has taken no more and the last answer has ended. Anew tells that a file
// it lists has another content, which only a new start shows. Status says what it lists some time after Reload returned.
func (e *Engine) Reload(ctx context.Context, anew bool) error {
	if !anew && e.router.Load() && e.rescan(ctx) {
		return nil
	}
	select {
	case e.reloading <- struct{}{}:
		defer func() { <-e.reloading }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	before := e.runs.Load()
	ticker := time.NewTicker(idleEvery)
	defer ticker.Stop()
	for began := time.Now(); !e.shut(ctx, before, time.Since(began) > untilIdle); {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	e.look(ctx, false) // who asks for it now is to wait, and not to be told that it failed
	select {
	case e.again <- struct{}{}:
	default: // it begins anew by itself
	}
	for e.runs.Load() == before {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// shut lets no more requests to the engine if it serves none; false: it does, and goes on. With wait it first lets those
// end that are under way.
func (e *Engine) shut(ctx context.Context, run int64, wait bool) bool {
	if !wait && e.Busy() > 0 {
		return false
	}
	base := e.base.Swap(nil)
	if wait && e.Busy() > 0 {
		e.look(ctx, false)
		ticker := time.NewTicker(idleEvery)
		defer ticker.Stop()
		for e.Busy() > 0 && ctx.Err() == nil && e.runs.Load() == run {
			select {
			case <-ticker.C:
			case <-ctx.Done():
			}
		}
	}
	if e.Busy() == 0 && ctx.Err() == nil {
		return true
	}
	if base != nil && e.runs.Load() == run {
		e.base.CompareAndSwap(nil, base)
	}
	return false
}

// rescan asks a router to read its folder again; false: it does not list what is there.
func (e *Engine) rescan(ctx context.Context) bool {
	list, err := e.get(ctx, "/models?reload=1")
	if err != nil {
		return false
	}
	var listed []string
	for _, m := range gjson.GetBytes(list, "data").Array() {
		listed = append(listed, m.Get("id").String())
	}
	files, err := modelFiles(e.ModelsDir())
	if err != nil || len(files) != len(listed) {
		return false
	}
	return !slices.ContainsFunc(files, func(file string) bool { return !slices.Contains(listed, strings.TrimSuffix(file, modelSuffix)) })
}

// modelFiles are the names of the models' files in a folder.
func modelFiles(dir string) ([]string, error) { return fs.Glob(os.DirFS(dir), "*"+modelSuffix) }

// isThere tells whether a folder has the file, or a folder, of a model.
func isThere(dir, model string) bool {
	for _, name := range []string{model + modelSuffix, model} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}
