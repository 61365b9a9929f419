// Package access decides who may do what. So far that is what Ollama itself decides: which web
// pages and which host names may reach a node (identities come later).
//
// Door guards every route of a listener, before anything else happens. It keeps no state.
package access

import (
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Config says which web pages may call the API.
type Config struct {
	// AllowedOrigins are origins beside those of the machine itself; "*" in one stands for any
	// text, and "*" alone for all origins. Needs a restart.
	AllowedOrigins []string `yaml:"allowed_origins"`
}

// ownOrigins are those that Ollama always allows: the machine itself, and desktop programs.
var ownOrigins = [...]string{
	"http://localhost", "https://localhost", "http://localhost:*", "https://localhost:*",
	"http://127.0.0.1", "https://127.0.0.1", "http://127.0.0.1:*", "https://127.0.0.1:*",
	"http://0.0.0.0", "https://0.0.0.0", "http://0.0.0.0:*", "https://0.0.0.0:*",
	"app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*",
}

// allowedHeaders are those that a page may send, as Ollama allows them, and ours.
const allowedHeaders = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,OpenAI-Beta," +
	"X-Stainless-Arch,X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method," +
	"X-Stainless-Lang,X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper," +
	"X-Stainless-Retry-Count,X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout," +
	"X-Request-Id,X-Priority,X-Deadline,X-Require-Label,X-Api-Key," +
	"Anthropic-Version,Anthropic-Beta,Anthropic-Dangerous-Direct-Browser-Access"

const exposedHeaders = "X-Ollamamax-Node,X-Request-Id,Retry-After"

// Door returns a handler that answers 403 to a page of a foreign origin and, on a loopback
// listener, to a foreign Host (DNS rebinding), answers preflights, and drops internal headers;
// the rest reaches next. loopback tells whether the listener is on loopback only.
func Door(cfg Config, loopback bool, next http.Handler) http.Handler {
	hostname, _ := os.Hostname() // without a name of its own, a machine has one spelling less
	hostname = strings.ToLower(hostname)
	origins := append(ownOrigins[:], cfg.AllowedOrigins...)
	anyOrigin := slices.Contains(cfg.AllowedOrigins, "*")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if loopback && !localHost(r.Host, hostname) {
			http.Error(w, "this Host is not served here", http.StatusForbidden)
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" && !sameOrigin(origin, r.Host) {
			if !anyOrigin && !slices.ContainsFunc(origins, func(pattern string) bool { return matches(pattern, origin) }) {
				http.Error(w, "pages of this origin may not call this API: add it to api.cors.allowed_origins", http.StatusForbidden)
				return
			}
			h := w.Header()
			if anyOrigin {
				h.Set("Access-Control-Allow-Origin", "*")
			} else {
				h.Set("Access-Control-Allow-Origin", origin)
				h.Add("Vary", "Origin")
			}
			h.Set("Access-Control-Expose-Headers", exposedHeaders)
			if r.Method == http.MethodOptions {
				h.Set("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS")
				h.Set("Access-Control-Allow-Headers", allowedHeaders)
				h.Set("Access-Control-Max-Age", "43200")
				w.WriteHeader(http.StatusNoContent)
				return
			}
		}
		for key := range r.Header {
			if strings.HasPrefix(key, "X-Ollamamax-") {
				delete(r.Header, key)
			}
		}
		next.ServeHTTP(w, r)
	})
}

// sameOrigin tells whether a page was itself served under the Host that it calls.
func sameOrigin(origin, host string) bool {
	_, rest, ok := strings.Cut(origin, "://")
	return ok && rest == host
}

// matches compares an origin with a pattern that may hold one "*".
func matches(pattern, origin string) bool {
	head, tail, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == origin
	}
	return len(origin) >= len(head)+len(tail) && strings.HasPrefix(origin, head) && strings.HasSuffix(origin, tail)
}

// localHost tells whether a Host can only mean this machine or its own network.
func localHost(hostport, hostname string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return addr.IsLoopback() || addr.IsPrivate() || addr.IsUnspecified() || ownAddr(addr)
	}
	host = strings.ToLower(host)
	if host == "" || host == "localhost" || host == hostname {
		return true
	}
	return strings.HasSuffix(host, ".localhost") || strings.HasSuffix(host, ".local") || strings.HasSuffix(host, ".internal")
}

func ownAddr(addr netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Unmap() == addr.Unmap() {
			return true
		}
	}
	return false
}
