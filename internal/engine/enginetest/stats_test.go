package enginetest

import (
	"reflect"
	"testing"
)

func TestStatsTellPathsRendersAndRawRequests(t *testing.T) {
	r, stop := start(t, Config{})
	defer stop()
	const chat = `{"model":"llama","messages":[{"role":"user","content":"Hi"}]`
	r.post("/api/chat", chat+`}`)
	r.post("/api/chat", chat+`,"_debug_render_only":true}`)
	r.post("/v1/chat/completions", chat+`,"_debug_render_only":true}`)
	r.post("/v1/messages", chat+`,"max_tokens":2,"_debug_render_only":true}`) // generates, as in Ollama
	r.post("/api/generate", `{"model":"llama","prompt":"Hi","raw":true}`)
	r.do("GET", "/v1/models/llama", "")
	r.do("GET", "/nothing", "")
	r.do("GET", "/api/chat", "")
	r.SetFault(Fault{Kind: FaultError500})
	r.do("POST", "/api/chat", chat+`}`)
	st := parse[Stats](t, r.post("/_stats", ""))
	want := map[string]int64{"/api/chat": 3, "/v1/chat/completions": 1, "/v1/messages": 1, "/api/generate": 1, "/v1/models/": 1}
	if !reflect.DeepEqual(st.Paths, want) || st.Renders != 2 || st.Raw != 1 || st.Completed != 3 {
		t.Errorf("%+v", st)
	}
}
