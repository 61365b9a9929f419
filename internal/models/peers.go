package models

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
	"github.com/ollamamax/ollamamax/internal/models/manifest"
)

// What nodes ask of each other.
const (
	fetchPath     = "/internal/models/fetch"     // POST a FetchRequest: records of progress, the last one {} or an error
	removePath    = "/internal/models/remove"    // POST a cluster.Fetch: the name is deleted
	manifestPath  = "/internal/models/manifest/" // GET, and the digest
	offerPath     = "/internal/models/offer/"    // POST, and a blob's digest: its root is agreed when the answer comes
	leasePath     = "/internal/models/lease/"    // POST a leaseRequest, DELETE, and a blob's digest: who asks the registry for it
	placePath     = "/internal/models/place"     // POST a Wish: the leader has it agreed and says where the model goes
	transfersPath = "/internal/models/transfers" // GET; DELETE /id
)

const (
	maxRequest = 256 << 10
	maxRecord  = 64 << 10

	askTimeout   = 30 * time.Second
	askAgain     = 5 * time.Second  // a holder that could not offer a blob
	offerTimeout = 20 * time.Minute // it may have to hash 1 TB, or to have its engine push it
	leaseTimeout = 10 * time.Second // of a node that says nothing more
)

// errNoAnswer is returned for a node that cannot be reached, or not until it has said how it went.
var errNoAnswer = errors.New("no answer")

// reply is the answer of what is done or not.
type reply struct {
	Code  string `json:"code,omitempty"`
	Error string `json:"error,omitempty"`

	Granted bool             `json:"granted,omitempty"`
	Nodes   []cluster.NodeID `json:"nodes,omitempty"`
	Version uint64           `json:"version,omitempty"` // of the State since which it is wanted so
}

func (r reply) err() error {
	if r.Error == "" {
		return nil
	}
	switch r.Code {
	case codeFull:
		return errFull{r.Error}
	case codeStopping:
		return fmt.Errorf("%s: %w", r.Error, errNoAnswer)
	}
	return cluster.ErrorFromCode(r.Code, r.Error)
}

const (
	codeFull     = "disk_full"
	codeStopping = "stopping"
)

// errFull is another node's full disk.
type errFull struct{ text string }

func (e errFull) Error() string        { return e.text }
func (e errFull) Is(target error) bool { return target == blob.ErrFull }

func failed(err error) reply {
	code := cluster.ErrorCode(err)
	switch {
	case errors.Is(err, blob.ErrFull):
		code = codeFull
	case errors.Is(err, errStopping):
		code = codeStopping
	}
	return reply{Code: code, Error: err.Error()}
}

// RegisterPeers adds the routes of other nodes to a mux. The remote address of their requests is their id.
func (m *Models) RegisterPeers(mux *http.ServeMux) {
	mux.HandleFunc("POST "+fetchPath, m.serveFetch)
	mux.HandleFunc("POST "+removePath, func(w http.ResponseWriter, r *http.Request) {
		var of cluster.Fetch
		if read(w, r, &of) {
			answer(w, reply{}, m.Remove(r.Context(), of.Name, of.Digest))
		}
	})
	mux.HandleFunc("GET "+manifestPath+"{digest}", func(w http.ResponseWriter, r *http.Request) {
		k, ok := m.own(r.PathValue("digest"))
		if models, isOllama := m.deps.EngineModels(); !ok && isOllama && slices.ContainsFunc(models, func(of cluster.Model) bool { return of.Digest == r.PathValue("digest") }) {
			m.take(r.Context()) // it was made just now
			k, ok = m.own(r.PathValue("digest"))
		}
		if !ok {
			http.Error(w, "not here", http.StatusNotFound)
			return
		}
		_, _ = w.Write(k.data) // a peer that is gone asks another
	})
	mux.HandleFunc("POST "+offerPath+"{digest}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, reply{}, m.offer(r.Context(), r.PathValue("digest")))
	})
	mux.HandleFunc("POST "+leasePath+"{digest}", func(w http.ResponseWriter, r *http.Request) {
		var req leaseRequest
		if read(w, r, &req) {
			granted, err := m.grant(r.PathValue("digest"), cluster.NodeID(r.RemoteAddr), req)
			answer(w, reply{Granted: granted}, err)
		}
	})
	mux.HandleFunc("DELETE "+leasePath+"{digest}", func(w http.ResponseWriter, r *http.Request) {
		m.release(r.PathValue("digest"), cluster.NodeID(r.RemoteAddr))
		answer(w, reply{}, nil)
	})
	mux.HandleFunc("POST "+placePath, func(w http.ResponseWriter, r *http.Request) {
		var wish Wish
		if read(w, r, &wish) {
			chosen, err := m.place(r.Context(), wish)
			answer(w, reply{Nodes: chosen.nodes, Version: chosen.version}, err)
		}
	})
	mux.HandleFunc("GET "+transfersPath, func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(m.Transfers()) // a peer that is gone does not care
	})
	mux.HandleFunc("DELETE "+transfersPath+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		req, ok := m.Cancel(r.PathValue("id"))
		if !ok {
			http.Error(w, "no such transfer", http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(req)
	})
}

func read(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(v); err != nil {
		http.Error(w, "read request: "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func answer(w http.ResponseWriter, r reply, err error) {
	if err != nil {
		r = failed(err)
	}
	_ = json.NewEncoder(w).Encode(r) // a peer that is gone asks again
}

// serveFetch streams the progress of a fetch to the node that wants it.
func (m *Models) serveFetch(w http.ResponseWriter, r *http.Request) {
	var req FetchRequest
	if !read(w, r, &req) {
		return
	}
	control := http.NewResponseController(w)
	err := m.Fetch(r.Context(), req, func(record []byte) error {
		if _, err := w.Write(append(bytes.Clone(record), '\n')); err != nil {
			return err
		}
		return control.Flush()
	})
	end := reply{}
	if err != nil {
		end = failed(err)
	}
	_ = json.NewEncoder(w).Encode(struct {
		Ended *reply `json:"ended"`
	}{&end}) // a peer that is gone asks again
}

// send sends a request to another node and returns an answer of 200.
func (m *Models) send(ctx context.Context, id cluster.NodeID, method, path string, body any) (*http.Response, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+string(id)+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if method != http.MethodGet {
		r.GetBody = nil // never sent twice
	}
	resp, err := m.deps.Peers.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("ask node %s: %w: %w", m.nameOf(id), errNoAnswer, err)
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // it explains, no more
		resp.Body.Close()
		return nil, fmt.Errorf("ask node %s for %s: status %d: %s", m.nameOf(id), path, resp.StatusCode, bytes.TrimSpace(text))
	}
	return resp, nil
}

// ask sends a request whose answer is one value.
func (m *Models) ask(ctx context.Context, id cluster.NodeID, method, path string, body, to any) error {
	resp, err := m.send(ctx, id, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, manifest.MaxSize)).Decode(to); err != nil {
		return fmt.Errorf("read what node %s answers to %s: %w", m.nameOf(id), path, err)
	}
	return nil
}

func (m *Models) nameOf(id cluster.NodeID) string {
	if n := m.deps.View().Node(id); n != nil {
		return n.Name
	}
	return string(id)
}

// fetchOn has a node fetch a model, and passes its progress on.
func (m *Models) fetchOn(ctx context.Context, id cluster.NodeID, req FetchRequest, progress func([]byte) error) error {
	if id == m.deps.Self {
		return m.Fetch(ctx, req, progress)
	}
	resp, err := m.send(ctx, id, http.MethodPost, fetchPath, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxRecord)
	for lines.Scan() {
		var end struct{ Ended *reply }
		if json.Unmarshal(lines.Bytes(), &end) == nil && end.Ended != nil {
			m.deps.Seen(ctx, id)
			return end.Ended.err()
		}
		if progress != nil {
			if err := progress(lines.Bytes()); err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("node %s broke off: %w: %w", m.nameOf(id), errNoAnswer, cmp.Or(lines.Err(), io.ErrUnexpectedEOF))
}

// removeOn has a node delete a name of a model.
func (m *Models) removeOn(ctx context.Context, id cluster.NodeID, name, digest string) error {
	if id == m.deps.Self {
		return m.Remove(ctx, name, digest)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var r reply
	if err := m.ask(ctx, id, http.MethodPost, removePath, cluster.Fetch{Name: name, Digest: digest}, &r); err != nil {
		return err
	}
	m.deps.Seen(ctx, id)
	return r.err()
}

func (m *Models) askForManifest(ctx context.Context, id cluster.NodeID, model string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := m.send(ctx, id, http.MethodGet, manifestPath+model, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, manifest.MaxSize+1))
}

// askToOffer asks a member that has a blob to have its root agreed, and returns when that is so.
func (m *Models) askToOffer(ctx context.Context, digest string, h holders, asked map[cluster.NodeID]time.Time) error {
	candidates := h.whole
	if len(candidates) == 0 {
		candidates = h.locked
	}
	for _, i := range rand.Perm(len(candidates)) {
		id := candidates[i]
		if at, was := asked[id]; was && m.deps.Now().Sub(at) < askAgain {
			continue
		}
		asked[id] = m.deps.Now()
		var r reply
		ctx, cancel := context.WithTimeout(ctx, offerTimeout)
		defer cancel()
		err := m.ask(ctx, id, http.MethodPost, offerPath+digest, nil, &r)
		if err == nil {
			err = r.err()
		}
		return err
	}
	return nil
}

// lease is the right to ask the registry for a blob.
type lease struct {
	node cluster.NodeID
	at   time.Time // asked for, or renewed
}

// leaseRequest asks for a lease.
type leaseRequest struct {
	// Renew: the node is at it already, and says so to a leader that may be new.
	Renew bool `json:"renew,omitempty"`
	// Without are nodes that have the blob and from which it cannot be had: they sent wrong bytes, say, or too slowly.
	Without []cluster.NodeID `json:"without,omitempty"`
}

// askForLease asks the leader whether this node may ask the registry for a blob.
func (m *Models) askForLease(ctx context.Context, digest string, req leaseRequest) (bool, error) {
	leader := m.deps.View().Leader
	switch leader {
	case "":
		return false, fmt.Errorf("no member has blob %s, and no leader says who is to ask the registry: %w", short(digest), cluster.ErrNoQuorum)
	case m.deps.Self:
		return m.grant(digest, m.deps.Self, req)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var r reply
	if err := m.ask(ctx, leader, http.MethodPost, leasePath+digest, req, &r); err != nil {
		return false, err
	}
	return r.Granted, r.err()
}

// grant gives the right to one node at a time, as long as it renews it, and to none while another has the blob. A new
// leader first hears of those who are at it.
func (m *Models) grant(digest string, to cluster.NodeID, req leaseRequest) (bool, error) {
	view := m.deps.View()
	if view.Leader != m.deps.Self {
		return false, cluster.ErrNotLeader
	}
	if !manifest.IsDigest(digest) {
		return false, fmt.Errorf("ask registry for blob: %q is no digest", digest)
	}
	dead := map[cluster.NodeID]bool{}
	for _, n := range view.Nodes {
		dead[n.ID] = n.Condition == cluster.Dead
		has := slices.ContainsFunc(n.Blobs, func(b cluster.Blob) bool { return b.Digest == digest && b.State == cluster.BlobWhole })
		if has && !dead[n.ID] && n.ID != to && !slices.Contains(req.Without, n.ID) && !req.Renew {
			return false, nil
		}
	}
	now := m.deps.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for digest, l := range m.leases {
		if now.Sub(l.at) > leaseTimeout || dead[l.node] {
			delete(m.leases, digest)
		}
	}
	l, held := m.leases[digest]
	if held && l.node != to || !held && (len(m.leases) >= maxLeases || !req.Renew && now.Before(m.hearing)) {
		return false, nil
	}
	m.leases[digest] = lease{to, now}
	return true, nil
}

const (
	maxLeases  = 10_000
	renewEvery = time.Second
	// hearFor is how long a new leader waits for those who are asking the registry.
	hearFor = 3 * renewEvery
)

func (m *Models) release(digest string, by cluster.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leases[digest].node == by {
		delete(m.leases, digest)
	}
}

// errLeaseLost ends the asking of a registry by a node that the leader did not hear for so long that another one asks there.
var errLeaseLost = errors.New("another node asks the registry")

// renewLease tells whoever leads that this node is asking the registry, until ctx ends. When another node has the lease it calls lost.
func (m *Models) renewLease(ctx context.Context, digest string, lost func(error)) {
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		granted, err := m.askForLease(ctx, digest, leaseRequest{Renew: true})
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			m.deps.Log.Debug("cannot renew a lease; it is tried again", "blob", short(digest), "err", err)
		case !granted:
			lost(errLeaseLost)
			return
		}
	}
}

// giveLeaseBack tells the leader that this node asks the registry no more, also when ctx has ended.
func (m *Models) giveLeaseBack(ctx context.Context, digest string) {
	leader := m.deps.View().Leader
	if leader == m.deps.Self {
		m.release(digest, m.deps.Self)
	}
	if leader == "" || leader == m.deps.Self {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	var r reply
	if err := m.ask(ctx, leader, http.MethodDelete, leasePath+digest, nil, &r); err != nil {
		m.deps.Log.Debug("cannot give a lease back; it ends by itself", "blob", short(digest), "err", err)
	}
}
