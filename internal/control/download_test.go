package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

func TestDownloadIsAnsweredOnceItIsAgreed(t *testing.T) {
	h := newRoom(t)
	var m api.Model
	if w := h.ask(t, "POST", "/api/v1/models/M/download", "", &m); w.Code != 202 || m.Wanted == nil || m.Name != "m:latest" || h.streamed {
		t.Errorf("%d %+v, streamed %v", w.Code, m, h.streamed)
	}
	if diff := cmp.Diff(api.Download{Nodes: []string{}}, h.wish); diff != "" {
		t.Errorf("an empty body wishes for something:\n%s", diff)
	}
	all := cluster.EveryNode
	h.ask(t, "POST", "/api/v1/models/M/download", `{"replicas":"all","nodes":["BETA","id-alpha","beta"],"labels":{"a":"b"},"insecure":true}`, nil)
	if diff := cmp.Diff(api.Download{Replicas: &all, Nodes: []string{"id-beta", "id-alpha"}, Labels: map[string]string{"a": "b"}, Insecure: true}, h.wish); diff != "" {
		t.Error(diff)
	}
	if w := h.ask(t, "POST", "/api/v1/models/brand-new/download", "", &m); w.Code != 202 || m.Name != "brand-new:latest" {
		t.Errorf("a model that the View does not show yet: %d %s", w.Code, w.Body)
	}
}

func TestStreamOfADownloadIsTheRecordsAsTheyCome(t *testing.T) {
	h := newRoom(t)
	w := httptest.NewRecorder()
	h.pull = func(_ context.Context, progress func([]byte) error) error {
		for i, record := range []string{`{"status":"pulling manifest"}`, `{"status":"pulling aa","digest":"sha256:aa","total":2,"completed":1}` + "\n", `{"status":"success"}`} {
			if err := progress([]byte(record)); err != nil {
				return err
			}
			if lines := strings.Count(w.Body.String(), "\n"); lines != i+1 || !w.Flushed {
				return fmt.Errorf("%d lines after record %d, flushed %v", lines, i, w.Flushed)
			}
			w.Flushed = false
		}
		return nil
	}
	h.mux.ServeHTTP(w, httptest.NewRequest("POST", "/api/v1/models/m/download", strings.NewReader(`{"stream":true}`)))
	want := `{"status":"pulling manifest"}
{"status":"pulling aa","digest":"sha256:aa","total":2,"completed":1}
{"status":"success"}
`
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/x-ndjson" || w.Body.String() != want {
		t.Errorf("%d %v\n%s", w.Code, w.Header(), w.Body)
	}
}

func TestStreamOfADownloadEndsWithItsError(t *testing.T) {
	h := newRoom(t)
	h.pull = func(_ context.Context, progress func([]byte) error) error {
		if err := progress([]byte(`{"status":"pulling manifest"}`)); err != nil {
			return err
		}
		return fmt.Errorf("place model m: %w", cluster.ErrContradiction)
	}
	w := h.ask(t, "POST", "/api/v1/models/m/download", `{"stream":true}`, nil)
	lines := strings.Split(w.Body.String(), "\n")
	var e api.ErrorBody
	if w.Code != 200 || len(lines) != 3 || lines[0] != `{"status":"pulling manifest"}` || json.Unmarshal([]byte(lines[1]), &e) != nil ||
		e.Error == nil || e.Error.Code != "contradiction" || e.Error.Origin != "alpha" || e.Error.Hint == "" {
		t.Errorf("%d\n%s", w.Code, w.Body)
	}
	h.pull = func(context.Context, func([]byte) error) error { return fmt.Errorf("agree: %w", cluster.ErrNoQuorum) }
	h.refused(t, "POST", "/api/v1/models/m/download", `{"stream":true}`, 503, "no_quorum", "ollamamax status")
	h.pull = func(context.Context, func([]byte) error) error { return nil }
	if w := h.ask(t, "POST", "/api/v1/models/m/download", `{"stream":true}`, nil); w.Code != 200 || w.Header().Get("Content-Type") != "application/x-ndjson" || w.Body.Len() > 0 {
		t.Errorf("no records: %d %s", w.Code, w.Body)
	}
}

// gone is a client that has hung up.
type gone struct{ *httptest.ResponseRecorder }

func (gone) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestPullLearnsThatNobodyWatches(t *testing.T) {
	h := newRoom(t)
	var told error
	h.pull = func(_ context.Context, progress func([]byte) error) error {
		told = progress([]byte(`{"status":"pulling manifest"}`))
		return told
	}
	h.mux.ServeHTTP(gone{httptest.NewRecorder()}, httptest.NewRequest("POST", "/api/v1/models/m/download", strings.NewReader(`{"stream":true}`)))
	if told == nil {
		t.Error("progress says that a client which is gone has read its record")
	}
}

// bounded is a connection with a deadline.
type bounded struct {
	*httptest.ResponseRecorder
	write time.Time
}

func (b *bounded) SetWriteDeadline(at time.Time) error { b.write = at; return nil }

func TestDownloadMayTakeLongAndTellingOfItMayNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newRoom(t)
		w := &bounded{ResponseRecorder: httptest.NewRecorder()}
		h.pull = func(_ context.Context, progress func([]byte) error) error {
			time.Sleep(time.Hour)
			if err := progress([]byte(`{"status":"success"}`)); err != nil {
				return err
			}
			if !w.write.Equal(time.Now().Add(patience)) {
				t.Errorf("a record may take until %v", w.write)
			}
			return nil
		}
		h.mux.ServeHTTP(w, httptest.NewRequest("POST", "/api/v1/models/m/download", strings.NewReader(`{"stream":true}`)))
		if w.Code != 200 || !w.write.IsZero() {
			t.Errorf("%d; the next answer of this connection may take until %v", w.Code, w.write)
		}
	})
}
