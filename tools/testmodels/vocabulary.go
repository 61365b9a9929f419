package main

import "strings"

// endOfText is the token that ends an answer. The tokens before it are the 256
// bytes, token b being byte b.
const endOfText = 256

// vocabulary is that of a byte-pair tokenizer: tokens in the spelling of
// GPT-2, which writes every byte as a letter, and merges in the order of rank.
type vocabulary struct {
	tokens, merges []string
	// splitter names, in llama.cpp, the rule that cuts a text before pairs are
	// merged.
	splitter string
}

// bytesOnly is the vocabulary in which every byte is a token: whatever text
// the tokens spell is read back as those same tokens.
func bytesOnly() vocabulary {
	v := vocabulary{splitter: "gpt-2", merges: []string{}}
	for b := range 256 {
		v.tokens = append(v.tokens, spell(string([]byte{byte(b)})))
	}
	v.tokens = append(v.tokens, "<|endoftext|>")
	return v
}

// withPhrases is bytesOnly and the given phrases, all prefixes of their words,
// and the merges that build them: first words, byte by byte, then phrases, word
// by word. Every word begins with its space. index holds the token of each
// phrase, word and prefix.
func withPhrases(phrases []string) (v vocabulary, index map[string]int) {
	v, index = bytesOnly(), map[string]int{}
	// No rule but one for digits: a token may have spaces and punctuation in it.
	v.splitter = "superbpe"
	merge := func(left, right string) {
		if _, ok := index[left+right]; ok {
			return
		}
		index[left+right] = len(v.tokens)
		v.tokens = append(v.tokens, spell(left+right))
		v.merges = append(v.merges, spell(left)+" "+spell(right))
	}
	for _, phrase := range phrases {
		for _, word := range words(phrase) {
			for n := 1; n < len(word); n++ {
				merge(word[:n], word[n:n+1])
			}
		}
	}
	for _, phrase := range phrases {
		said := ""
		for _, word := range words(phrase) {
			if said != "" {
				merge(said, word)
			}
			said += word
		}
	}
	return v, index
}

// words cuts a phrase before each space.
func words(phrase string) []string {
	words := strings.Split(phrase, " ")[1:]
	for i := range words {
		words[i] = " " + words[i]
	}
	return words
}

func (v vocabulary) types() []int32 {
	types := make([]int32, len(v.tokens))
	for i := range types {
		types[i] = tokenNormal
	}
	types[endOfText] = tokenControl
	return types
}

// spell writes bytes in GPT-2's letters: printable ones of Latin-1 stand for
// themselves, the others for the letters from U+0100 on, in their order.
func spell(s string) string {
	var out strings.Builder
	for i := range len(s) {
		out.WriteRune(letters[s[i]])
	}
	return out.String()
}

var letters = func() (letters [256]rune) {
	next := rune(0x100)
	for b := range letters {
		if '!' <= b && b <= '~' || 0xa1 <= b && b <= 0xac || 0xae <= b {
			letters[b] = rune(b)
		} else {
			letters[b] = next
			next++
		}
	}
	return letters
}()
