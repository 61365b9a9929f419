// Package install brings models into the engine beside this node, and out of it, through the engine's own routes
// and a registry on loopback. No file of the engine's is touched.
//
// A model comes in under a passing name, since the engine calls what it pulled by the place that it came
// from, and then takes its plain name's place: what had the plain name is copied aside, so that the engine deletes the
// blobs that only that one had, the new one is copied over it, and the passing names are deleted. That is
// done for one model at a time.
//
// A passing name is left only by a crash, of the node or of the engine, and Clean deletes it. Between the two copies the plain name has the
// old model or the new one (an Ollama that is killed in the middle of a copy may lose it: whoever wants the model
// installs it again).
//
// Start reading at Installer.Install, then Export.
package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// settleTimeout is how long an engine gets to delete a passing name after the caller left.
const settleTimeout = 30 * time.Second

// Deps is what an Installer needs of its node.
type Deps struct {
	Log *slog.Logger
	// Engine sends a request to the engine. Its URL has a path only.
	Engine http.RoundTripper
	// Registry is HOST:PORT of the loopback registry, as it stands in names.
	Registry string
	// Follow returns a context that ends, with the cause, when the registry knows that a repository of
	// its own cannot be had or taken.
	Follow func(ctx context.Context, repository string) (context.Context, context.CancelFunc)
	// Receive makes the registry take a push of a model.
	Receive func(model string, wanted ...manifest.Wanted) (Receipt, error)
}

// Receipt is a push that the registry takes.
type Receipt interface {
	// Repository is what Follow takes.
	Repository() string
	// Manifest returns the manifest's bytes when all that was wanted came and was right.
	Manifest() ([]byte, error)
	Close()
}

// Installer brings models in and out. It is safe for concurrent use.
type Installer struct {
	deps   Deps
	naming chan struct{} // a lock that a context can give up on

	mu    sync.Mutex
	users map[manifest.Name]int // passing names that are in use
}

// New returns an Installer.
func New(deps Deps) *Installer {
	return &Installer{deps: deps, naming: make(chan struct{}, 1), users: map[manifest.Name]int{}}
}

// ErrNoModel is returned for a name that the engine does not know.
var ErrNoModel = errors.New("engine has no such model")

// Install makes the engine pull the model, which is its manifest's digest, and gives it the name. Each record
// of the engine's progress is passed on as it is, without its line's end; the one that says success comes
// when all is done. An error of progress ends the pull.
func (i *Installer) Install(ctx context.Context, name manifest.Name, model string, progress func(record []byte) error) error {
	if !manifest.IsDigest(model) {
		return fmt.Errorf("install %s: %q is no model's digest", name, model)
	}
	if name.IsPassing() {
		return fmt.Errorf("install %s: this name is for models that pass", name)
	}
	defer i.use(manifest.Incoming(i.deps.Registry, model))()
	var success []byte
	err := i.pull(ctx, model, func(record []byte) error {
		if isSuccess(record) {
			success = append(success[:0], record...)
			return nil
		}
		return progress(record)
	})
	if err == nil {
		err = i.name(ctx, name, model)
	}
	if err != nil {
		return fmt.Errorf("install %s: %w", name, errors.Join(err, i.dropPassing(ctx, model)))
	}
	return progress(success)
}

// pull makes the engine pull the model under its passing name.
func (i *Installer) pull(ctx context.Context, model string, progress func([]byte) error) error {
	ctx, unfollow := i.deps.Follow(ctx, model)
	defer unfollow()
	passing := manifest.Incoming(i.deps.Registry, model)
	return i.stream(ctx, "/api/pull", map[string]any{"model": passing.String(), "insecure": true}, progress)
}

// lock takes the turn of those who change what names there are.
func (i *Installer) lock(ctx context.Context) error {
	select {
	case i.naming <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (i *Installer) unlock() { <-i.naming }

// name gives a pulled model its plain name. It is not broken off half-way by a caller who leaves.
func (i *Installer) name(ctx context.Context, name manifest.Name, model string) error {
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	// Deleting a name takes the blobs that no name has, and one that this pull found there and did not fetch may
	// have gone with another model since. Nothing is deleted now: what is gone is fetched again.
	if err := i.pull(ctx, model, func([]byte) error { return nil }); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	passing := manifest.Incoming(i.deps.Registry, model)
	old, err := i.digest(ctx, name)
	if errors.Is(err, ErrNoModel) {
		old, err = "", nil
	}
	if err == nil && old != model {
		err = i.replace(ctx, name, old, passing)
	}
	// In any case, and last, so that the model always has a name.
	if err = errors.Join(err, i.remove(ctx, passing)); err != nil {
		return err
	}
	got, err := i.digest(ctx, name)
	if err == nil && got != model {
		err = fmt.Errorf("the engine says it is %s, not %s", got, model)
	}
	return err
}

// dropPassing deletes the passing name of a model that is not installed, which the engine may have had already when the pull
// was broken off. Who installs the same model under another name pulls it again in its turn.
func (i *Installer) dropPassing(ctx context.Context, model string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	passing := manifest.Incoming(i.deps.Registry, model)
	if _, err := i.digest(ctx, passing); err != nil {
		return nil // it has none, or is gone: then Clean finds it
	}
	return i.remove(ctx, passing)
}

// replace makes the name that of another model. A copy over the old one alone would leave its blobs.
func (i *Installer) replace(ctx context.Context, name manifest.Name, old string, by manifest.Name) error {
	if old == "" {
		return i.copy(ctx, by, name)
	}
	aside := manifest.Incoming(i.deps.Registry, old)
	if err := i.copy(ctx, name, aside); err != nil {
		return err
	}
	if err := i.copy(ctx, by, name); err != nil {
		if again := i.copy(ctx, aside, name); again != nil {
			return errors.Join(err, again) // whoever wants the old model installs it again: Clean deletes the name aside
		}
		return errors.Join(err, i.remove(ctx, aside))
	}
	return i.remove(ctx, aside)
}

// use keeps Clean from a passing name until the function that it returns is called.
func (i *Installer) use(passing manifest.Name) (done func()) {
	add := func(n int) {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.users[passing] += n; i.users[passing] == 0 {
			delete(i.users, passing)
		}
	}
	add(1)
	return func() { add(-1) }
}

// Clean deletes the passing names that nobody uses: those of the node's registry, or all, also of registries that earlier runs
// had. The first one is called before anything is installed or exported.
func (i *Installer) Clean(ctx context.Context, all bool) error {
	left, err := i.leftOver(ctx, all)
	if err != nil || len(left) == 0 {
		return err
	}
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	if left, err = i.leftOver(ctx, all); err != nil { // while a name was given there was one more
		return err
	}
	var errs []error
	for _, name := range left {
		err := i.remove(ctx, name)
		if err == nil {
			i.deps.Log.Info("name left over is deleted", "name", name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (i *Installer) leftOver(ctx context.Context, all bool) (left []manifest.Name, err error) {
	models, err := i.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for names left over: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, m := range models {
		name, err := manifest.ParseName(m.Name)
		if err == nil && name.IsPassing() && i.users[name] == 0 && (all || name.Host == i.deps.Registry) {
			left = append(left, name)
		}
	}
	return left, nil
}

// Export makes the engine push the model that has the name, and returns its manifest's bytes. Of its blobs
// only the wanted ones cross; which there are, a first call without any tells. The model says which one it must be.
func (i *Installer) Export(ctx context.Context, name manifest.Name, model string, wanted ...manifest.Wanted) ([]byte, error) {
	data, err := i.export(ctx, name, model, wanted)
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", name, err)
	}
	return data, nil
}

func (i *Installer) export(ctx context.Context, name manifest.Name, model string, wanted []manifest.Wanted) (data []byte, err error) {
	receipt, err := i.deps.Receive(model, wanted...)
	if err != nil {
		return nil, err
	}
	defer receipt.Close()
	passing := manifest.Outgoing(i.deps.Registry, model)
	defer i.use(passing)()
	if err := i.copy(ctx, name, passing); err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()
		if failed := i.lock(ctx); failed != nil {
			err = errors.Join(err, fmt.Errorf("delete name %s: %w", passing, failed))
			return
		}
		defer i.unlock()
		err = errors.Join(err, i.remove(ctx, passing))
	}()
	ctx, unfollow := i.deps.Follow(ctx, receipt.Repository())
	defer unfollow()
	if err := i.stream(ctx, "/api/push", map[string]any{"model": passing.String(), "insecure": true}, func([]byte) error { return nil }); err != nil {
		return nil, err
	}
	return receipt.Manifest()
}

// errNoSuccess is returned for a pull or push whose stream ends without saying how it went.
var errNoSuccess = fmt.Errorf("engine broke off: %w", io.ErrUnexpectedEOF)

// Remove deletes a name from the engine, in its turn, if it is that of the model; a model of "" is any. A name that is gone already,
// or is another model's by now, is no error.
func (i *Installer) Remove(ctx context.Context, name manifest.Name, model string) error {
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	if model != "" {
		has, err := i.digest(ctx, name)
		if errors.Is(err, ErrNoModel) || err == nil && has != model {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return i.remove(ctx, name)
}

// Do sends a request to the engine whose answer says nothing.
func (i *Installer) Do(ctx context.Context, route string, body any) error {
	return i.do(ctx, http.MethodPost, route, body)
}
