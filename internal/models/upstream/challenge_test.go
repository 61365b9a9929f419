package upstream

import "testing"

func TestChallengesAreRead(t *testing.T) {
	for text, want := range map[string]challenge{
		`Bearer realm="https://a/token",service="s",scope="repository:a/b:pull"`: {"https://a/token", "s", "repository:a/b:pull"},
		`bearer Realm=https://a, scope="x y"`:                                    {"https://a", "", "x y"},
		`Bearer realm="https://a/token?x=y,z"`:                                   {"https://a/token?x=y,z", "", ""},
		`Basic realm="x"`:                                                        {},
		`Bearer`:                                                                 {},
		`Bearer service="s"`:                                                     {service: "s"},
		`Bearer realm="https:`:                                                   {},
	} {
		got, ok := parseChallenge(text)
		if ok != (want.realm != "") || ok && got != want {
			t.Errorf("%s: %+v %v", text, got, ok)
		}
	}
}

func FuzzParseChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/token",service="s",scope="repository:a/b:pull"`)
	f.Fuzz(func(t *testing.T, text string) {
		if c, ok := parseChallenge(text); ok && c.realm == "" {
			t.Errorf("%q is a challenge without a realm", text)
		}
	})
}
