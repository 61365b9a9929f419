package control

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

// ErrNotAlone says that a node cannot join another cluster, because it has one.
var ErrNotAlone = errors.New("this node belongs to a cluster that has agreed on more than itself")

const (
	defaultTTL = time.Hour
	maxTTL     = 30 * 24 * time.Hour
	maxBody    = 64 << 10
)

// registerMembers adds the routes that change who belongs.
func (c *Control) registerMembers(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/cluster/leader", c.leader)
	mux.HandleFunc("POST /api/v1/cluster/leader", c.handle(c.transfer))
	mux.HandleFunc("POST /api/v1/cluster/join", c.handle(c.join))
	mux.HandleFunc("POST /api/v1/cluster/leave", c.handle(func(r *http.Request) (int, any, error) {
		return http.StatusNoContent, nil, c.deps.Leave(r.Context())
	}))
	mux.HandleFunc("GET /api/v1/tokens", c.handle(c.tokens))
	mux.HandleFunc("POST /api/v1/tokens", c.handle(c.createToken))
	mux.HandleFunc("DELETE /api/v1/tokens/{id}", c.handle(func(r *http.Request) (int, any, error) {
		return http.StatusNoContent, nil, c.apply(r, cluster.Command{RevokeToken: &cluster.RevokeToken{ID: r.PathValue("id")}})
	}))
	mux.HandleFunc("DELETE /api/v1/nodes/{node}", c.onNode(func(id cluster.NodeID) cluster.Command {
		return cluster.Command{Remove: &cluster.Remove{ID: id, Why: "removed by an operator"}}
	}))
	mux.HandleFunc("POST /api/v1/nodes/{node}/drain", c.onNode(func(id cluster.NodeID) cluster.Command {
		return cluster.Command{Drain: &cluster.Drain{ID: id, On: true}}
	}))
	mux.HandleFunc("POST /api/v1/nodes/{node}/undrain", c.onNode(func(id cluster.NodeID) cluster.Command {
		return cluster.Command{Drain: &cluster.Drain{ID: id, On: false}}
	}))
}

// handle answers with what f returns, or with its error.
func (c *Control) handle(f func(*http.Request) (int, any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		status, body, err := f(r)
		switch {
		case err != nil:
			c.failWith(w, err)
		case body == nil:
			w.WriteHeader(status)
		default:
			reply(w, status, body)
		}
	}
}

// onNode has a command about the node of the path agreed, and answers with the node.
func (c *Control) onNode(command func(cluster.NodeID) cluster.Command) http.HandlerFunc {
	return c.handle(func(r *http.Request) (int, any, error) {
		m, err := c.deps.State().Member(r.PathValue("node"))
		if err != nil {
			return 0, nil, err
		}
		if err := c.apply(r, command(m.ID)); err != nil {
			return 0, nil, err
		}
		if _, still := c.deps.State().Members[m.ID]; !still {
			return http.StatusNoContent, nil, nil
		}
		return http.StatusOK, c.deps.View().Node(m.ID), nil
	})
}

func (c *Control) apply(r *http.Request, command cluster.Command) error {
	command.At = c.deps.Now()
	return c.deps.Apply(r.Context(), command)
}

func (c *Control) leader(w http.ResponseWriter, _ *http.Request) {
	v := c.deps.View()
	reply(w, http.StatusOK, api.Leader{Leader: nameOf(v, v.Leader), ID: v.Leader, Term: v.Term})
}

func (c *Control) transfer(r *http.Request) (int, any, error) {
	var to api.NodeName
	if err := decode(r, &to); err != nil {
		return 0, nil, err
	}
	m, err := c.deps.State().Member(to.Node)
	if err != nil {
		return 0, nil, err
	}
	if err := c.deps.Transfer(r.Context(), m.ID); err != nil {
		return 0, nil, err
	}
	return http.StatusOK, api.Leader{Leader: m.Name, ID: m.ID, Term: c.deps.View().Term}, nil
}

func (c *Control) join(r *http.Request) (int, any, error) {
	var request api.JoinRequest
	if err := decode(r, &request); err != nil {
		return 0, nil, err
	}
	return http.StatusNoContent, nil, c.deps.Join(r.Context(), request.Token)
}

func (c *Control) tokens(*http.Request) (int, any, error) {
	list := api.Tokens{Tokens: []api.Token{}}
	for _, t := range c.deps.State().Tokens {
		list.Tokens = append(list.Tokens, api.Token{ID: t.ID, ExpiresAt: t.ExpiresAt.UTC()})
	}
	slices.SortFunc(list.Tokens, func(a, b api.Token) int { return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.ID, b.ID)) })
	return http.StatusOK, list, nil
}

func (c *Control) createToken(r *http.Request) (int, any, error) {
	var request api.TokenRequest
	if err := decode(r, &request); err != nil {
		return 0, nil, err
	}
	ttl := defaultTTL
	if request.TTL != "" {
		d, err := time.ParseDuration(request.TTL)
		if err != nil || d <= 0 || d > maxTTL {
			return 0, nil, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("ttl is %q", request.TTL), Hint: "give a duration such as 1h, 720h at most"}
		}
		ttl = d
	}
	token, command, err := cluster.NewToken(c.deps.Now(), ttl, c.deps.State().ClusterID, c.deps.Addrs())
	if err != nil {
		return 0, nil, err
	}
	if err := c.deps.Apply(r.Context(), command); err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, api.Token{ID: token.ID, Token: token.Text(), ExpiresAt: command.CreateToken.ExpiresAt.UTC()}, nil
}

// decode reads a JSON body to its end, so that a client who leaves is noticed; an empty one sets nothing. A field that the route does not know is
// refused: who misspells a wish must not believe that it was heard.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		} else if err == nil {
			err = errors.New("something follows the object")
		}
	}
	if errors.As(err, new(*http.MaxBytesError)) {
		return fmt.Errorf("read body: %w", err)
	}
	return &api.Error{Code: api.CodeBadRequest, Message: "read body: " + err.Error(), Hint: "send one JSON object with the fields of this route only"}
}

func nameOf(v *cluster.View, id cluster.NodeID) string {
	if n := v.Node(id); n != nil {
		return n.Name
	}
	return string(id)
}

// failWith answers with an error, as explain does.
func (c *Control) failWith(w http.ResponseWriter, err error) {
	status, e := explain(err)
	c.fail(w, status, e)
}

// explain is the one place that turns an error into a status and a hint.
func explain(err error) (int, *api.Error) {
	status, e := http.StatusInternalServerError, &api.Error{Code: cluster.ErrorCode(err), Message: err.Error()}
	var own *api.Error
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
	}
	switch {
	case errors.As(err, &own):
		return statusOf(own.Code), own
	case errors.As(err, new(*http.MaxBytesError)):
		status, e.Code, e.Hint = http.StatusRequestEntityTooLarge, api.CodeBadRequest, fmt.Sprintf("send at most %d bytes", maxBody)
	case errors.Is(err, ErrNotAlone):
		status, e.Code, e.Hint = http.StatusConflict, api.CodeConflict, "start a node with an empty --data-dir and --join"
	case errors.Is(err, ErrUnknownTransfer):
		status, e.Code, e.Hint = http.StatusNotFound, api.CodeNotFound, "`ollamamax transfers` lists those that there are"
	case is(cluster.ErrNoQuorum, cluster.ErrNotLeader):
		status, e.Hint = http.StatusServiceUnavailable, "start enough of the voters again (`ollamamax status` shows them); if a majority is lost for good, run `ollamamax recover` on one that is left"
	case is(cluster.ErrUncertain):
		status, e.Hint = http.StatusServiceUnavailable, "look whether it took effect; it may be repeated"
	case is(cluster.ErrUnknownNode):
		status, e.Hint = http.StatusNotFound, "`ollamamax nodes` lists the names and ids"
	case is(cluster.ErrUnknownModel):
		status, e.Hint = http.StatusNotFound, "`ollamamax models` lists what there is; `ollamamax pull` fetches one"
	case is(cluster.ErrTokenUnknown):
		status, e.Hint = http.StatusNotFound, "`ollamamax token list` lists the tokens; `ollamamax token create` makes one"
	case is(cluster.ErrTokenExpired, cluster.ErrTokenSecret, cluster.ErrTokenDamaged):
		status, e.Hint = http.StatusForbidden, "make a new one with `ollamamax token create` on a member"
	case is(cluster.ErrContradiction):
		status, e.Hint = http.StatusConflict, "give replicas and nodes that fit together; an empty list of nodes lets all hold it"
	case is(cluster.ErrChanged):
		status, e.Hint = http.StatusConflict, "look again, and decide on the version that there is now"
	case is(cluster.ErrBadCommand):
		status = http.StatusBadRequest
	case is(cluster.ErrLastMember, cluster.ErrBarred, cluster.ErrObserver, cluster.ErrAmbiguousNode, cluster.ErrNotMember, cluster.ErrAlreadyFounded):
		status = http.StatusConflict
	}
	if e.Code == "" {
		e.Code = api.CodeInternal
	}
	return status, e
}

// statusOf is the status of an error that comes with a code of its own.
func statusOf(code string) int {
	switch code {
	case api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeConflict:
		return http.StatusConflict
	case api.CodeInternal:
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}
