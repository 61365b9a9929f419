package resume

import "testing"

func TestARequestBecomesAStreamAndKeepsItsOtherBytes(t *testing.T) {
	const chat, completions, messages, responses = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
	const counted = `"stream_options":{"include_usage":true}`
	for _, tc := range []struct{ path, body, want string }{ // "" is not to be a stream
		{"/api/chat", `{"stream": false, "x":1}`, `{"stream": true, "x":1}`},
		{"/api/generate", `{"a":[1, 2],"Stream":false }`, `{"a":[1, 2],"Stream":false ,"stream":true}`},
		{"/api/generate", `{"n":3,"stream":false,"tools":[{"type":"web_search"}],"stream_options":7}`, `{"n":3,"stream":true,"tools":[{"type":"web_search"}],"stream_options":7}`},
		{messages, `{"stream":null}`, `{"stream":true}`},
		{messages, `{}`, `{"stream":true}`},
		{responses, ` { } `, `{ "stream":true}`},
		{responses, `{"tools":[{"type":"function"}],"store":false,"background":null}`, `{"tools":[{"type":"function"}],"store":false,"background":null,"stream":true}`},
		{chat, `{"model":"m"}`, `{"model":"m","stream":true,` + counted + `}`},
		{chat, `{"stream":true,"stream":false,"stream_options":null,"n":1}`, `{"stream":true,"stream":true,` + counted + `,"n":1}`},
		{chat, `{"stream":false,"STREAM":false}`, `{"stream":false,"STREAM":false,"stream":true,` + counted + `}`},
		{completions, `{"stream_options":{"include_usage":false, "x":[ ]},"stream":false,"prompt":"p","suffix":"s"}`, `{"stream_options":{"include_usage":true, "x":[ ]},"stream":true,"prompt":"p","suffix":"s"}`},
		{completions, `{"stream_options":{"x":1}}`, `{"stream_options":{"x":1,"include_usage":true},"stream":true}`},
		{chat, `{"logprobs":true,"top_logprobs":2,"functions":null}`, `{"logprobs":true,"top_logprobs":2,"functions":null,"stream":true,` + counted + `}`},
		{completions, `{"logprobs":null,"echo":false,"best_of":1}`, `{"logprobs":null,"echo":false,"best_of":1,"stream":true,` + counted + `}`},
		{chat, `{"stream":"no"}`, ""},
		{chat, `{"stream_options":true}`, ""},
		{chat, `{"n":2}`, ""},
		{completions, `{"N":2}`, ""},
		{completions, `{"best_of":2}`, ""},
		{completions, `{"prompt":["a","b"]}`, ""},
		{completions, `{"logprobs":3}`, ""},
		{completions, `{"logprobs":0}`, ""},
		{completions, `{"echo":true}`, ""},
		{chat, `{"audio":{}}`, ""},
		{chat, `{"store":true}`, ""},
		{chat, `{"functions":[{}]}`, ""},
		{chat, `{"_debug_render_only":true}`, ""},
		{responses, `{"background":true}`, ""},
		{responses, `{"previous_response_id":"r"}`, ""},
		{responses, `{"tools":[{"type":"function"},{"type":"namespace"}]}`, ""},
		{messages, `{"tools":[{"name":"x"},{"type":"web_search_20250305"}]}`, ""},
		{chat, `[1]`, ""},
		{chat, ``, ""},
	} {
		got, ok := AsStream(tc.path, []byte(tc.body))
		if string(got) != tc.want || ok != (tc.want != "") {
			t.Errorf("%s %s:\n%s (%v), want\n%s", tc.path, tc.body, got, ok, tc.want)
		}
	}
}
