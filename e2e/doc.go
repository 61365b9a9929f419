// Package e2e tests the built binary from outside: real processes, real sockets and, where the
// truth of an answer matters, a real Ollama.
//
// The tests that need the engine take it from OLLAMAMAX_ENGINE (`make engine` fills
// .cache/engine); without it they are skipped, unless CI is set. Everything that a test starts
// ends with it. Start reading at harness_test.go.
package e2e
