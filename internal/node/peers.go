package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/roundtrip"
)

// Between nodes, HTTP runs over the mesh: the clients' routes, served by the own engine or refused
// (gateway.RegisterLocal), and these.
const (
	applyPath    = "/internal/apply"    // POST a command: the leader has it agreed
	transferPath = "/internal/transfer" // POST {"node"}: the leader hands over
	entryPath    = "/internal/entry"    // GET what the node tells of itself, now
)

// maxInternal bounds what one node reads of another's internal answer.
const maxInternal = 8 << 20

// peerTransport carries HTTP to other nodes: the URL's host is the node's id.
type peerTransport struct {
	uploads   *http.Transport   // for what streams to the other node
	exchanges *roundtrip.Client // for all else
}

func (n *Node) newPeerTransport() *peerTransport {
	dial := func(ctx context.Context, id string) (net.Conn, error) {
		conn, err := n.host.Dial(ctx, cluster.NodeID(id), httpProtocol)
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: "mesh", Err: err}
		}
		return conn, nil
	}
	return &peerTransport{
		exchanges: roundtrip.New(roundtrip.Config{Dial: dial, MaxIdle: 4096, IdleTimeout: 90 * time.Second}),
		uploads: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				id, _, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				return dial(ctx, id)
			},
			DisableCompression: true, // bytes go through as they came
			DisableKeepAlives:  true,
		},
	}
}

// RoundTrip sends a request to the node that its URL's host is.
func (t *peerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.GetBody != nil {
		return t.exchanges.RoundTrip(r)
	}
	return t.uploads.RoundTrip(r)
}

// peerServer serves other nodes. Membership is checked at each request, since a connection may
// outlive it.
func (n *Node) peerServer(mux *http.ServeMux) *http.Server {
	mux.HandleFunc("POST "+applyPath, n.serveApply)
	mux.HandleFunc("POST "+transferPath, n.serveTransfer)
	mux.HandleFunc("GET "+entryPath, n.serveEntry)
	guarded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, barred := n.state().Barred[cluster.NodeID(r.RemoteAddr)]; barred {
			http.Error(w, "you were removed from this cluster", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
	return &http.Server{
		Handler:           n.impatient(guarded),
		ReadHeaderTimeout: n.cfg.Gateway.Timeouts.Header,
		IdleTimeout:       n.cfg.Gateway.Timeouts.Idle,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          n.httpLog(),
	}
}

// applied is the answer of applyPath and transferPath.
type applied struct {
	Version uint64 `json:"version,omitempty"`
	Code    string `json:"code,omitempty"`
	Error   string `json:"error,omitempty"`
}

func (n *Node) serveApply(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, cluster.MaxCommand))
	if err != nil {
		replyApplied(w, 0, err)
		return
	}
	command, err := cluster.DecodeCommand(data)
	if err != nil {
		replyApplied(w, 0, err)
		return
	}
	c := n.consensus.Load()
	if c == nil {
		replyApplied(w, 0, cluster.ErrNotLeader)
		return
	}
	if command.Remove != nil && command.Remove.ID == n.id && c.Status().Leader == n.id {
		err := n.apply(r.Context(), command) // through whoever leads then
		replyApplied(w, c.State().Version, err)
		return
	}
	version, err := c.ApplyAsLeader(r.Context(), command)
	replyApplied(w, version, err)
}

func (n *Node) serveTransfer(w http.ResponseWriter, r *http.Request) {
	var to api.NodeName
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, cluster.MaxCommand)).Decode(&to)
	if c := n.consensus.Load(); err == nil {
		err = cluster.ErrNotLeader
		if c != nil {
			err = c.Transfer(r.Context(), cluster.NodeID(to.Node))
		}
	}
	replyApplied(w, 0, err)
}

func replyApplied(w http.ResponseWriter, version uint64, err error) {
	a := applied{Version: version}
	if err != nil {
		a.Code, a.Error = cluster.ErrorCode(err), err.Error()
	}
	_ = json.NewEncoder(w).Encode(a) // a peer that is gone asks again
}

// entryNow is the answer of entryPath.
type entryNow struct {
	Boot    uint64          `json:"boot"`
	Version uint64          `json:"version"`
	Entry   json.RawMessage `json:"entry"`
}

func (n *Node) serveEntry(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	e := entryNow{n.boot, n.entryVersion, n.entry}
	n.mu.Unlock()
	_ = json.NewEncoder(w).Encode(e) // a peer that is gone hears of it at the next heartbeat
}

// ask sends an internal request to a peer and decodes its answer.
func (n *Node) ask(ctx context.Context, id cluster.NodeID, method, path string, body []byte, answer any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+string(id)+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if method != http.MethodGet {
		r.GetBody = nil // it changes something: never sent twice
	}
	resp, err := n.toPeers.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask node %s for %s: status %d", id, path, resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxInternal)).Decode(answer); err != nil {
		return fmt.Errorf("read node %s's %s: %w", id, path, err)
	}
	return nil
}

// forwardCommand has the leader agree on a command.
func (n *Node) forwardCommand(ctx context.Context, leader cluster.NodeID, c cluster.Command) (uint64, error) {
	data, err := c.Encode()
	if err != nil {
		return 0, err
	}
	var a applied
	if err := n.ask(ctx, leader, http.MethodPost, applyPath, data, &a); err != nil {
		return 0, err
	}
	if a.Error != "" {
		return 0, cluster.ErrorFromCode(a.Code, a.Error)
	}
	return a.Version, nil
}

// transfer hands the leadership over, through the leader. It waits a while for one to be elected.
func (n *Node) transfer(ctx context.Context, to cluster.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	for {
		err := n.askToTransfer(ctx, to)
		if !errors.Is(err, cluster.ErrNotLeader) && !errors.Is(err, cluster.ErrNoQuorum) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(transferAgain):
		}
	}
}

const (
	transferTimeout = 5 * time.Second
	transferAgain   = 100 * time.Millisecond
)

func (n *Node) askToTransfer(ctx context.Context, to cluster.NodeID) error {
	c := n.consensus.Load()
	if c == nil {
		return cluster.ErrNotMember
	}
	leader := c.Status().Leader
	switch leader {
	case "":
		return cluster.ErrNoQuorum
	case n.id:
		return c.Transfer(ctx, to)
	}
	data, err := json.Marshal(api.NodeName{Node: string(to)})
	if err != nil {
		return err
	}
	var a applied
	if err := n.ask(ctx, leader, http.MethodPost, transferPath, data, &a); err != nil {
		return err
	}
	if a.Error != "" {
		return cluster.ErrorFromCode(a.Code, a.Error)
	}
	return nil
}

// refreshNode reads anew what a node's engine holds, before a client that changed it goes on.
func (n *Node) refreshNode(ctx context.Context, node *cluster.Node) {
	if node.ID == n.id {
		n.engine.Refresh(ctx)
		n.rebuild()
		return
	}
	// The peer has read its engine anew before it ended its answer; only its entry may not be here yet.
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	var e entryNow
	if n.ask(ctx, node.ID, http.MethodGet, entryPath, nil, &e) == nil { // else the next heartbeat brings it
		n.entryReceived(node.ID, e.Boot, e.Version, e.Entry)
		n.rebuild()
	}
}

// refreshTimeout bounds asking a peer that is alive and very slow; the connection of one that dies breaks.
const refreshTimeout = 15 * time.Second
