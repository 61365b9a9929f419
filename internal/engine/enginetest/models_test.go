package enginetest

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func (r *rig) names() []string {
	var out []string
	for _, m := range r.Models() {
		out = append(out, m.Name)
	}
	return out
}

func TestModelsComeAndGoAsTheyDoInOllama(t *testing.T) {
	r, stop := start(t, Config{Pullable: []Model{{Name: "ns/new:v2", Digest: strings.Repeat("12", 32), Size: 800}}})
	defer stop()

	rs := lines(t, r.post("/api/pull", `{"model":"NS/new:V2"}`))
	if first, last := rs[0], rs[len(rs)-1]; first.Status != "pulling manifest" || last.Status != "success" || len(rs) != 13 {
		t.Errorf("pull %+v", rs)
	}
	if rs := lines(t, r.post("/api/pull", `{"model":"other"}`)); len(rs) != 2 || rs[1].Error != "pull model manifest: file does not exist" {
		t.Errorf("pull of an unknown model %+v", rs)
	}
	if b := r.post("/api/pull", `{"model":"ns/new:v2","stream":false}`); b != `{"status":"success"}` {
		t.Errorf("pull without a stream %s", b)
	}
	r.post("/api/copy", `{"source":"ns/new:v2","destination":"plain"}`)
	r.post("/api/push", `{"model":"plain"}`)
	if got := r.names(); !slices.Equal(got, []string{"llama:latest", "ns/new:v2", "plain:latest", "qwen:latest", "vectors:latest"}) {
		t.Errorf("models %q", got)
	}
	type listed struct {
		Models []struct{ Name, Model, Digest string }
		Data   []struct{ ID string }
	}
	_, b := r.do("GET", "/api/tags", "")
	if tags := parse[listed](t, b).Models; len(tags) != 5 || tags[0].Name != "plain:latest" || tags[0].Digest != strings.Repeat("12", 32) {
		t.Errorf("tags %s", b)
	}
	_, b = r.do("GET", "/v1/models", "")
	if len(parse[listed](t, b).Data) != 5 {
		t.Errorf("/v1/models %s", b)
	}
	if status, _ := r.do("GET", "/v1/models/Plain", ""); status != 200 {
		t.Errorf("/v1/models/Plain: %d", status)
	}
	if b := r.post("/api/show", `{"model":"plain"}`); !strings.Contains(b, "FROM /root/.ollama/models/blobs/sha256-") {
		t.Errorf("show %s", b)
	}
	if status, _ := r.do("DELETE", "/api/delete", `{"model":"plain"}`); status != 200 {
		t.Errorf("delete: %d", status)
	}
	if status, _ := r.do("DELETE", "/api/delete", `{"model":"plain"}`); status != 404 {
		t.Errorf("delete again: %d", status)
	}
}

func TestBlobsAreVerifiedAndBecomeModelsWithTheSameDigestEverywhere(t *testing.T) {
	digest := "sha256:" + hexDigest("weights")
	var digests []string
	for range 2 {
		r, stop := start(t, Config{Models: []Model{}})
		defer stop()
		head := func() int { status, _ := r.do("HEAD", "/api/blobs/"+digest, ""); return status }
		create := fmt.Sprintf(`{"model":"made","files":{"a.gguf":%q}}`, digest)
		if status, _ := r.do("POST", "/api/create", create); head() != 404 || status != 500 {
			t.Errorf("without the blob: HEAD %d, create %d", head(), status)
		}
		if status, b := r.do("POST", "/api/blobs/"+digest, "other"); status != 400 || !strings.Contains(b, "digest mismatch, expected") {
			t.Errorf("a wrong blob: %d %s", status, b)
		}
		if status, _ := r.do("POST", "/api/blobs/"+digest, "weights"); status != 201 || head() != 200 {
			t.Errorf("the blob: %d, HEAD %d", status, head())
		}
		if rs := lines(t, r.post("/api/create", create)); rs[len(rs)-1].Status != "success" {
			t.Errorf("create %+v", rs)
		}
		r.post("/api/create", `{"model":"twin","from":"made"}`)
		r.post("/api/create", `{"model":"changed","from":"made","system":"Be brief."}`)
		ms := r.Models()
		if ms[1].Digest != ms[2].Digest || ms[0].Digest == ms[1].Digest || ms[1].Size != 7 {
			t.Errorf("models %+v", ms)
		}
		digests = append(digests, ms[1].Digest)
	}
	if digests[0] != digests[1] {
		t.Errorf("digests %q", digests)
	}
}

func TestAModelStaysLoadedForItsKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := start(t, Config{LoadTime: time.Second})
		defer stop()
		loaded := func() string { return strings.Join(r.Loaded(), " ") }
		use := func(extra string) { r.post("/api/generate", `{"model":"llama","prompt":"x","stream":false`+extra+`}`) }

		use("")
		time.Sleep(5*time.Minute - time.Second)
		if loaded() != "llama:latest" {
			t.Errorf("before its time %q", loaded())
		}
		time.Sleep(time.Second)
		if loaded() != "" {
			t.Errorf("after its time %q", loaded())
		}
		use(`,"keep_alive":-1,"options":{"num_ctx":2048}`)
		time.Sleep(24 * time.Hour)
		_, b := r.do("GET", "/api/ps", "")
		ps := parse[struct {
			Models []struct {
				Name    string
				Expires time.Time `json:"expires_at"`
				Context int       `json:"context_length"`
			}
		}](t, b).Models
		if len(ps) != 1 || ps[0].Context != 2048 || ps[0].Expires.Before(time.Now().Add(time.Hour)) {
			t.Errorf("ps %s", b)
		}
		if d := took(func() { use(`,"options":{"num_ctx":1024}`) }); d != time.Second || r.Stats().Loads != 3 {
			t.Errorf("another num_ctx took %v and made %d loads", d, r.Stats().Loads)
		}
		if got := parse[record](t, r.post("/api/chat", `{"model":"llama","keep_alive":0}`)); got.DoneReason != "unload" || loaded() != "" {
			t.Errorf("unload %+v, loaded %q", got, loaded())
		}
		if got := parse[record](t, r.post("/api/generate", `{"model":"llama","keep_alive":"10s"}`)); got.DoneReason != "load" || loaded() != "llama:latest" {
			t.Errorf("load %+v, loaded %q", got, loaded())
		}
		use(`,"keep_alive":"0s"`)
		if loaded() != "" {
			t.Errorf("loaded after keep_alive 0: %q", loaded())
		}
	})
}

func TestEmbeddingsAreUnitVectorsOfTheirText(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	got := parse[struct {
		Embeddings [][]float64
		Count      int `json:"prompt_eval_count"`
	}](t, r.post("/api/embed", `{"model":"vectors","input":["one two","one two","three"]}`))
	if len(got.Embeddings) != 3 || got.Count != 5 || !slices.Equal(got.Embeddings[0], got.Embeddings[1]) || slices.Equal(got.Embeddings[0], got.Embeddings[2]) {
		t.Fatalf("%+v", got)
	}
	var sum float64
	for _, x := range got.Embeddings[0] {
		sum += x * x
	}
	if len(got.Embeddings[0]) != EmbeddingLength || math.Abs(sum-1) > 1e-5 {
		t.Errorf("%d dimensions of length %v", len(got.Embeddings[0]), sum)
	}
	old := parse[struct{ Embedding []float64 }](t, r.post("/api/embeddings", `{"model":"vectors","prompt":"one two"}`)).Embedding
	v1 := parse[struct {
		Data []struct{ Embedding []float64 }
	}](t, r.post("/v1/embeddings", `{"model":"vectors","input":"one two"}`)).Data[0].Embedding
	if !slices.Equal(old, got.Embeddings[0]) || !slices.Equal(v1, old) {
		t.Error("the three routes disagree")
	}
	if b := r.post("/v1/embeddings", `{"model":"vectors","input":"x","encoding_format":"base64","dimensions":3}`); !strings.Contains(b, `"embedding":"`) {
		t.Errorf("base64 %s", b)
	}
}
