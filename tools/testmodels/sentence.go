package main

import (
	"math"
	"strings"

	"github.com/ollama/ollama/fs/ggml"
)

// text is what the sentence model says. No phrase of it may occur twice (see
// phrases), which a test holds it to.
const text = `
A cluster is a small village of machines that look after each other. Nobody there is special:
every computer keeps a copy of the same plan, tells its neighbours how it feels, and lends them
whatever strength it has to spare. When you ask a question, the village quietly decides who should
answer. Perhaps it is the fastest member, perhaps the one which already holds your model in memory,
or simply whoever is least busy tonight. Words begin to travel back at once, one by one, like
lanterns along a river. Sometimes a machine falls silent: a cable comes loose, a fan stops turning,
somebody trips over the plug. Its friends notice within moments, wait politely, then agree together
that they must manage without it. Nothing gets lost. Another picks up the unfinished sentence, reads
what was said so far, and carries on from exactly the next word, so smoothly that most people never
see any seam. Later, rested and repaired, the missing companion returns. It is greeted warmly, given
fresh work, and soon forgets the accident. None of this is magic. It is patience, careful listening,
honest counting, and a habit of writing important things down in more than a single place. We have
lived that way for centuries: alone we are fragile, but side by side we keep our lights burning until
morning. So ask me anything, pull a cord if you like, and enjoy the calm.
`

// joining are the words too common to be met only once in a text: they make
// one phrase with what follows.
var joining = func() map[string]bool {
	joining := map[string]bool{}
	for _, word := range strings.Fields("a an and at by if in is it its of or so that the to we when you") {
		joining[word] = true
	}
	return joining
}()

// phrases cuts a text into phrases: a word with its punctuation and the space
// before it, and any joining words in front.
func phrases(text string) []string {
	var phrases []string
	phrase := ""
	for _, word := range strings.Fields(text) {
		phrase += " " + word
		if !joining[strings.ToLower(word)] {
			phrases = append(phrases, phrase)
			phrase = ""
		}
	}
	return phrases
}

// bigrams says for every token which one follows.
type bigrams struct {
	vocabulary
	next []int
}

// newBigrams reads the table off a text. The last phrase is followed by the
// end. Whatever is no phrase of the text (a byte, a part of a phrase: how most
// prompts end) is followed by the first.
func newBigrams(text string) bigrams {
	said := phrases(text)
	v, index := withPhrases(said)
	b := bigrams{vocabulary: v, next: make([]int, len(v.tokens))}
	for token := range b.next {
		b.next[token] = index[said[0]]
	}
	for i, phrase := range said[1:] {
		b.next[index[said[i]]] = index[phrase]
	}
	b.next[index[said[len(said)-1]]] = endOfText
	return b
}

// sentence is a llama that knows only its last token: layers that add nothing,
// one-hot embeddings, and an output matrix that is the table b. A token that
// does not follow has the probability e^-20, so heat up to 1 changes nothing.
func sentence(b bigrams, layers int, weights ggml.TensorType) model {
	width := len(b.tokens)
	s := shape{layers: layers, width: width, heads: 1, head: headLength, feedForward: headLength}
	return llama("sentence", s, b.vocabulary, weights, func(tensor string, _ int) fill {
		switch {
		case tensor == "token_embd.weight":
			return func(token, i int) float32 {
				if token == i {
					return 1
				}
				return 0
			}
		case tensor == "output_norm.weight":
			// A one-hot vector leaves the norm as the root of its length.
			return func(int, int) float32 { return float32(1 / math.Sqrt(float64(width))) }
		case tensor == "output.weight":
			return func(follower, token int) float32 {
				if b.next[token] == follower {
					return 0
				}
				return -20
			}
		case strings.HasSuffix(tensor, "_norm.weight"):
			return func(int, int) float32 { return 1 }
		default:
			return func(int, int) float32 { return 0 }
		}
	})
}
