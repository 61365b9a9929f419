package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTheSameFlagsGiveTheSameBytes(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sentence", "noise", "embed"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var files [2][]byte
			for i := range files {
				path := filepath.Join(t.TempDir(), "model.gguf")
				args := []string{"-model", name, "-layers", "2", "-width", "128", "-o", path}
				if err := run(args, io.Discard); err != nil {
					t.Fatal(err)
				}
				var err error
				if files[i], err = os.ReadFile(path); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(files[0], files[1]) {
				t.Error("two writes differ")
			}
		})
	}
}

func TestTypeF16HalvesTheFile(t *testing.T) {
	t.Parallel()
	var sizes [2]int64
	for i, kind := range []string{"f32", "f16"} {
		path := filepath.Join(t.TempDir(), "model.gguf")
		if err := run([]string{"-model", "noise", "-type", kind, "-o", path}, io.Discard); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sizes[i] = info.Size()
	}
	if ratio := float64(sizes[1]) / float64(sizes[0]); ratio < 0.49 || ratio > 0.51 {
		t.Errorf("f32 takes %d bytes, f16 %d", sizes[0], sizes[1])
	}
}

func TestWrongUsageWritesNothing(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	file := filepath.Join(folder, "model.gguf")
	for name, args := range map[string][]string{
		"nothing asked for": {},
		"both ways":         {"-out", folder, "-model", "noise", "-o", file},
		"no file":           {"-model", "noise"},
		"unknown model":     {"-model", "llama3", "-o", file},
		"unknown type":      {"-model", "noise", "-type", "q4", "-o", file},
		"width of no head":  {"-model", "noise", "-width", "100", "-o", file},
		"negative layers":   {"-model", "noise", "-layers", "-1", "-o", file},
	} {
		if err := run(args, io.Discard); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if files, _ := os.ReadDir(folder); len(files) > 0 {
		t.Errorf("wrote %v", files)
	}
}

func TestNoPhraseOfTheTextOccursTwice(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, phrase := range phrases(text) {
		if seen[phrase] {
			t.Errorf("%q occurs twice: greedy, the model would circle", phrase)
		}
		seen[phrase] = true
	}
}

func TestGreedyTheSentenceIsSaidOnceAndEnds(t *testing.T) {
	t.Parallel()
	b := newBigrams(text)
	for name, start := range map[string]int{
		"a question mark": '?',
		"a new line":      '\n',
		"part of a word":  slices.Index(b.tokens, spell(" villag")),
	} {
		if start < 0 {
			t.Fatalf("%s is no token", name)
		}
		var said []string
		for token := b.next[start]; token != endOfText; token = b.next[token] {
			said = append(said, b.tokens[token])
			if len(said) > len(b.tokens) {
				t.Fatalf("after %s it circles", name)
			}
		}
		if len(said) < 100 {
			t.Errorf("after %s it says %d phrases, want 100 or more", name, len(said))
		}
		want := spell(" " + strings.Join(strings.Fields(text), " "))
		if got := strings.Join(said, ""); got != want {
			t.Errorf("after %s it says\n%s\nwant\n%s", name, got, want)
		}
	}
}

// So a stream that was cut between two phrases goes on elsewhere as it would have.
func TestTheTextReadsBackAsItsPhrases(t *testing.T) {
	t.Parallel()
	want := phrases(text)
	v, _ := withPhrases(want)
	for i := range want {
		want[i] = spell(want[i])
	}
	got := tokenize(v, strings.Join(phrases(text), ""))
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("phrase %d is read back as %q, want %q", i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d phrases are read back as %d", len(want), len(got))
	}
}

// tokenize merges the pair of the lowest rank, leftmost first, until none is left.
func tokenize(v vocabulary, text string) []string {
	rank := map[string]int{}
	for i, merge := range v.merges {
		rank[merge] = i
	}
	var tokens []string
	for i := range len(text) {
		tokens = append(tokens, spell(text[i:i+1]))
	}
	for {
		best, at := len(rank), -1
		for i := range len(tokens) - 1 {
			if r, ok := rank[tokens[i]+" "+tokens[i+1]]; ok && r < best {
				best, at = r, i
			}
		}
		if at < 0 {
			return tokens
		}
		tokens = slices.Replace(tokens, at, at+2, tokens[at]+tokens[at+1])
	}
}
