package cluster

// Request is what a decision needs to know of a client's request: never its text.
type Request struct {
	Path        string // the client's route, such as /api/chat
	Model       string // as the client wrote it; "" when the route has none
	PromptBytes int    // length of the body, an upper bound for the prompt's text
	NumCtx      int    // the context length that the client asks for; 0: the engine's choice
}
