package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

// filesIn are the names of the files in a folder.
func filesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// saidBy asks for a chat and returns the text, and the node that answered.
func saidBy(t *testing.T, m *member, model string, header ...string) (text, node string) {
	t.Helper()
	body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"a cluster"}],"max_tokens":8,"temperature":0}`, model)
	code, head, answer := askHeader(t, "POST", m.url+"/v1/chat/completions", body, append([]string{"Content-Type", "application/json"}, header...)...)
	var said struct {
		Choices []struct{ Message struct{ Content string } }
	}
	if err := json.Unmarshal([]byte(answer), &said); err != nil || code != 200 || len(said.Choices) != 1 {
		t.Fatalf("%d from %q: %s", code, head.Get("X-Ollamamax-Node"), answer)
	}
	return said.Choices[0].Message.Content, head.Get("X-Ollamamax-Node")
}

func TestALlamaServerIsGivenAModelThatAnOllamaHolds(t *testing.T) {
	t.Parallel()
	a := realMember(t, "a")
	form(t, a)
	b := &member{name: "b", dataDir: filepath.Join(t.TempDir(), "b"), args: []string{"--engine", "llama-server", "--engine-command", llamaServer(t)}}
	b.start(t, "--join", newToken(t, a))
	dir := filepath.Join(b.dataDir, "models")
	eventually(t, 20*time.Second, "b waits for a model", func() bool { return strings.Contains(engineOf(t, a, "b").Why, "no *.gguf") })
	create(t, a.url, "Team/Words:v1", filepath.Join(engineDir(t), "sentence.gguf"))

	// Nobody's llama-server gets a model because there is room.
	if text, code := run(t, "pull", "team/words:v1", "--replicas", "2", "--api", a.url); code == 0 || !strings.Contains(text, "only where its node is named") {
		t.Errorf("pull to two nodes: %d %s", code, text)
	}
	if text, code := run(t, "pull", "team/words:v1", "--nodes", "b", "--api", a.url); code != 0 {
		t.Fatalf("pull: %d %s\n%s", code, text, b.output)
	}
	if files := filesIn(t, dir); !slices.Equal(files, []string{"team_words_v1.gguf"}) {
		t.Errorf("b's folder has %v", files)
	}
	want, err := os.ReadFile(filepath.Join(engineDir(t), "sentence.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "team_words_v1.gguf")); err != nil {
		t.Error(err)
	} else if _, err := os.Stat(filepath.Join(a.dataDir, "models", "blobs", fmt.Sprintf("sha256-%x", sha256.Sum256(got)))); err != nil {
		t.Errorf("a has no such bytes: %v", err)
	}
	pid := enginePID(t, b.dataDir)
	t.Cleanup(func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	// The Ollama's stays: what b was given is not the whole of it.
	held := heldBy(t, a, "team%2Fwords:v1")
	if len(held) != 2 || held["a"] == "" || held["b"] != "" {
		t.Errorf("held by %v", held)
	}
	if spool := filesIn(t, filepath.Join(b.dataDir, "spool", "blobs")); len(spool) != 0 {
		t.Errorf("left in b's spool: %v", spool)
	}

	// A request may go to b, from wherever, by any spelling.
	if text, code := run(t, "drain", "a", "--api", a.url); code != 0 {
		t.Fatalf("drain: %d %s", code, text)
	}
	for _, m := range []*member{a, b} {
		for _, name := range []string{"team/words:v1", "Team/WORDS:v1"} {
			if said, node := saidBy(t, m, name); node != "b" || said == "" {
				t.Errorf("%s says %q through %s", node, said, m.name)
			}
		}
	}
	if code, text := ask(t, "GET", b.url+"/v1/models", ""); code != 200 || strings.Count(text, `"id":"team/words:v1"`)+strings.Count(text, `"id":"Team/Words:v1"`) != 1 || strings.Contains(text, `"id":"team_words`) {
		t.Errorf("b's list: %d %s", code, text)
	}
	if text, code := run(t, "undrain", "a", "--api", a.url); code != 0 {
		t.Fatalf("undrain: %d %s", code, text)
	}

	// It is known again after a restart.
	b.stop(t)
	b.start(t)
	b.up(t)
	eventually(t, 20*time.Second, "b holds it still", func() bool { return len(heldBy(t, a, "team%2Fwords:v1")) == 2 })

	// Somebody else's file stays, whatever becomes of ours.
	if err := os.WriteFile(filepath.Join(dir, "mine.gguf"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	if text, code := run(t, "rm", "team/words:v1", "--api", a.url); code != 0 {
		t.Fatalf("rm: %d %s", code, text)
	}
	if files := filesIn(t, dir); !slices.Equal(files, []string{"mine.gguf"}) {
		t.Errorf("b's folder has %v", files)
	}
	eventually(t, 30*time.Second, "b answers for the other file", func() bool {
		return engineOf(t, a, "b").Condition == "ready" && len(heldBy(t, a, "mine")) == 1
	})
	if said, node := saidBy(t, a, "mine"); node != "b" || said == "" {
		t.Errorf("%s says %q", node, said)
	}
	if held := heldBy(t, a, "team%2Fwords:v1"); len(held) != 0 {
		t.Errorf("held by %v", held)
	}
}

// router is a real llama-server that runs as a router. Such a one starts itself again for each model, and what `make engine`
// unpacks can start only with the loader of its own: then it is a copy that names that loader itself.
func router(t *testing.T) string {
	t.Helper()
	wrapper, err := filepath.EvalSymlinks(llamaServer(t))
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(filepath.Dir(wrapper), "..", "usr")
	lib := filepath.Join(root, "lib", "x86_64-linux-gnu")
	program, err := os.ReadFile(filepath.Join(root, "bin", "llama-server"))
	if err != nil {
		return wrapper // the machine's own
	}
	dir, err := os.MkdirTemp("/tmp", "o") // its path must not be longer than the loader's usual one
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	usual, loader := []byte("/lib64/ld-linux-x86-64.so.2\x00"), filepath.Join(dir, "ld")
	at := bytes.Index(program, usual)
	if at < 0 || len(loader) >= len(usual) {
		t.Fatalf("cannot name the loader %s in llama-server", loader)
	}
	copy(program[at:], append([]byte(loader), make([]byte, len(usual)-len(loader))...))
	links, err := filepath.Glob(filepath.Join(lib, "libggml-cpu-*.so"))
	for _, file := range links {
		err = errors.Join(err, os.Symlink(file, filepath.Join(dir, filepath.Base(file))))
	}
	command := filepath.Join(dir, "command")
	script := fmt.Sprintf("#!/bin/sh\nLD_LIBRARY_PATH=%[1]s:%[1]s/llama exec %[2]s/llama-server \"$@\"\n", lib, dir)
	err = errors.Join(err, os.Symlink(filepath.Join(lib, "ld-linux-x86-64.so.2"), loader),
		os.WriteFile(filepath.Join(dir, "llama-server"), program, 0o700), os.WriteFile(command, []byte(script), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	return command
}

func TestALlamaServerIsGivenModelsWhileItAnswers(t *testing.T) {
	t.Parallel()
	a := realMember(t, "a")
	form(t, a)
	config := filepath.Join(t.TempDir(), "b.yaml")
	if err := os.WriteFile(config, []byte("node: {labels: {host: b}}\np2p: {mdns: false}\nmodels: {"+quietModels+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &member{name: "b", dataDir: filepath.Join(t.TempDir(), "b"), args: []string{"--config", config, "--engine", "llama-server", "--engine-command", router(t)}}
	dir := filepath.Join(b.dataDir, "models")
	noise, err := os.ReadFile(filepath.Join(engineDir(t), "noise.gguf"))
	if err := errors.Join(err, os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "own.gguf"), noise, 0o600)); err != nil {
		t.Fatal(err)
	}
	b.start(t, "--join", newToken(t, a))
	eventually(t, 30*time.Second, "b's engine is ready", func() bool { return engineOf(t, a, "b").Condition == "ready" })
	create(t, a.url, "words", filepath.Join(engineDir(t), "sentence.gguf"))
	create(t, a.url, "third", filepath.Join(engineDir(t), "sentence.gguf"))

	// pulled has b given a model while it says something long, and tells whether the engine is the same.
	pulled := func(model, other string) bool {
		t.Helper()
		before := enginePID(t, b.dataDir)
		t.Cleanup(func() { _ = syscall.Kill(-before, syscall.SIGKILL) })
		answer := make(chan string, 1)
		go func() {
			_, text := ask(t, "POST", b.url+"/v1/completions", fmt.Sprintf(`{"model":%q,"prompt":"The sea","max_tokens":3000,"ignore_eos":true,"stream":true}`, other))
			answer <- text
		}()
		eventually(t, 20*time.Second, "b answers", func() bool {
			s, _ := status(t, b)
			return slices.ContainsFunc(s.Nodes, func(n *cluster.Node) bool { return n.Name == "b" && n.Slots.Busy > 0 })
		})
		if text, code := run(t, "pull", model, "--nodes", "b", "--api", a.url); code != 0 {
			t.Fatalf("pull: %d %s\n%s", code, text, b.output)
		}
		if text := <-answer; !strings.Contains(text, `"completion_tokens":3000`) && !strings.Contains(text, `"predicted_n":3000`) || strings.Count(text, "[DONE]") != 1 || strings.Contains(text, `"error"`) {
			t.Errorf("the answer was broken:\n%.2000s", text[max(0, len(text)-2000):])
		}
		if strings.Contains(b.output.String(), "stream broke") {
			t.Error("the answer had to be mended")
		}
		after := enginePID(t, b.dataDir)
		t.Cleanup(func() { _ = syscall.Kill(-after, syscall.SIGKILL) })
		for _, name := range []string{model, strings.ToUpper(model) + ":latest"} {
			if said, node := saidBy(t, b, name, "X-Require-Label", "host=b"); node != "b" || !strings.Contains(said, "cluster") {
				t.Errorf("%s says %q", node, said)
			}
		}
		return after == before
	}
	if pulled("words", "own") {
		t.Error("an engine with one model was not started anew for a second")
	}
	if !pulled("third", "own") {
		t.Error("an engine with several models was started anew for another")
	}
	if files := filesIn(t, dir); !slices.Equal(files, []string{"own.gguf", "third_latest.gguf", "words_latest.gguf"}) {
		t.Errorf("b's folder has %v", files)
	}
	before := enginePID(t, b.dataDir)
	if text, code := run(t, "rm", "third", "--api", a.url); code != 0 {
		t.Fatalf("rm: %d %s", code, text)
	}
	if files := filesIn(t, dir); !slices.Equal(files, []string{"own.gguf", "words_latest.gguf"}) || enginePID(t, b.dataDir) != before {
		t.Errorf("b's folder has %v", files)
	}
	if said, node := saidBy(t, b, "words", "X-Require-Label", "host=b"); node != "b" || said == "" {
		t.Errorf("%s says %q", node, said)
	}

	// What becomes of the model becomes of its weights.
	create(t, a.url, "words", filepath.Join(engineDir(t), "noise.gguf"))
	eventually(t, 30*time.Second, "b has the new weights", func() bool {
		var m api.Model
		_, text := ask(t, "GET", a.url+"/api/v1/models/words", "")
		return json.Unmarshal([]byte(text), &m) == nil && len(m.Replicas) == 2 && m.Replicas[0].Digest != "" && m.Replicas[0].Digest == m.Replicas[1].Weights
	})
	before = enginePID(t, b.dataDir)
	t.Cleanup(func() { _ = syscall.Kill(-before, syscall.SIGKILL) })
	if said, node := saidBy(t, b, "words", "X-Require-Label", "host=b"); node != "b" || said == "" || strings.Contains(said, "cluster") {
		t.Errorf("%s says %q", node, said)
	}
	if files := filesIn(t, dir); !slices.Equal(files, []string{"own.gguf", "words_latest.gguf"}) {
		t.Errorf("b's folder has %v", files)
	}

	// Somebody else's file of that name is an error that names it, and stays.
	if err := os.WriteFile(filepath.Join(dir, "third_latest.gguf"), []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	create(t, a.url, "third", filepath.Join(engineDir(t), "sentence.gguf"))
	if text, code := run(t, "pull", "third", "--nodes", "b", "--api", a.url); code == 0 || !strings.Contains(text, "was not put there by this node") {
		t.Errorf("pull: %d %s", code, text)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "third_latest.gguf")); err != nil || string(data) != "not ours" {
		t.Errorf("somebody's file: %q %v", data, err)
	}
}
