package cluster

// Explanation is why a request would be sent where, the wire form of /api/v1/schedule/explain.
// Durations are as Go writes them.
type Explanation struct {
	Model      string      `json:"model"`
	Policy     string      `json:"policy"`
	Chosen     string      `json:"chosen"`  // "" when no node can serve it
	Waiting    int         `json:"waiting"` // requests in the queue
	Candidates []Candidate `json:"candidates"`
}

// Candidate is a node that holds the model, and the terms of its score: the expected time to the
// first token.
type Candidate struct {
	Node    string `json:"node"`
	Why     string `json:"why"` // why it cannot serve the request, "" if it can
	Loaded  bool   `json:"loaded"`
	Fits    bool   `json:"fits"` // prompt and answer have room in its context
	Busy    int    `json:"busy"`
	Slots   int    `json:"slots"`
	Ejected string `json:"ejected"` // for how long its breaker keeps it out

	Score   string  `json:"score"`
	Wait    string  `json:"wait"`
	Load    string  `json:"load"`
	Prefill string  `json:"prefill"`
	Link    string  `json:"link"`
	Risk    float64 `json:"risk"` // by which share the sum is raised

	PromptTokens int     `json:"prompt_tokens"`
	CachedTokens int     `json:"cached_tokens"`
	Learned      Learned `json:"learned"`
}

// Learned is what answers have shown of a model on a node; zero is unknown.
type Learned struct {
	Load    string  `json:"load"`
	Prefill float64 `json:"prefill"` // tokens a second
	Gap     string  `json:"gap"`     // between two tokens
	Output  float64 `json:"output"`  // tokens of an answer
}
