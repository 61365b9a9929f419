package control

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/ollamamax/ollamamax/internal/api"
)

// ErrUnknownTransfer says that no transfer has this id, or that it has ended.
var ErrUnknownTransfer = errors.New("unknown transfer")

// registerTransfers adds the routes about models on their way.
func (c *Control) registerTransfers(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/transfers", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, c.transfers(r))
	})
	mux.HandleFunc("GET /api/v1/transfers/{id}", c.handle(func(r *http.Request) (int, any, error) {
		id, list := r.PathValue("id"), c.transfers(r)
		if i := slices.IndexFunc(list.Transfers, func(t api.Transfer) bool { return t.ID == id }); i >= 0 {
			return http.StatusOK, list.Transfers[i], nil
		}
		e := &api.Error{Code: api.CodeNotFound, Message: "no transfer " + id, Hint: "`ollamamax transfers` lists those that there are"}
		if len(list.Missing) > 0 {
			e.Message += " is known; no answer from " + strings.Join(list.Missing, ", ")
		}
		return 0, nil, e
	}))
	mux.HandleFunc("DELETE /api/v1/transfers/{id}", c.handle(func(r *http.Request) (int, any, error) {
		return http.StatusNoContent, nil, c.deps.CancelTransfer(r.Context(), r.PathValue("id"))
	}))
}

// transfers lists the whole cluster's, the oldest first.
func (c *Control) transfers(r *http.Request) api.Transfers {
	transfers, missing := c.deps.Transfers(r.Context())
	list := api.Transfers{Transfers: []api.Transfer{}, Missing: append([]string{}, missing...)}
	for _, t := range transfers {
		if t.Sources == nil {
			t.Sources = []api.TransferSource{}
		}
		t.Since = t.Since.UTC()
		list.Transfers = append(list.Transfers, t)
	}
	slices.SortFunc(list.Transfers, func(a, b api.Transfer) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	slices.Sort(list.Missing)
	return list
}
