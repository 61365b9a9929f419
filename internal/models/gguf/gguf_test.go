package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/ollamamax/ollamamax/internal/cluster"
)

// head writes a file's head by hand.
type head struct {
	version       uint32
	tensors, keys uint64
	body          []byte
}

func newHead() *head { return &head{version: 3} }

func text(s string) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(s))), s...)
}

func (h *head) put(values ...any) *head {
	for _, v := range values {
		switch v := v.(type) {
		case string:
			h.body = append(h.body, text(v)...)
		default:
			var err error
			if h.body, err = binary.Append(h.body, binary.LittleEndian, v); err != nil {
				panic(err)
			}
		}
	}
	return h
}

// key adds a key with a value: a text, a number, or an array.
func (h *head) key(key string, value any) *head {
	h.keys++
	h.put(key)
	switch v := value.(type) {
	case string:
		return h.put(uint32(typeString), v)
	case uint32:
		return h.put(uint32(typeUint32), v)
	case uint64:
		return h.put(uint32(typeUint64), v)
	case uint16:
		return h.put(uint32(typeUint16), v)
	case int8:
		return h.put(uint32(typeInt8), v)
	case int16:
		return h.put(uint32(typeInt16), v)
	case int32:
		return h.put(uint32(typeInt32), v)
	case float32:
		return h.put(uint32(typeFloat32), v)
	case bool:
		return h.put(uint32(typeBool), v)
	case []int32:
		return h.put(uint32(typeArray), uint32(typeInt32), uint64(len(v)), v)
	case []string:
		h.put(uint32(typeArray), uint32(typeString), uint64(len(v)))
		for _, s := range v {
			h.put(s)
		}
		return h
	}
	panic(fmt.Sprintf("%T", value))
}

func (h *head) tensor(name string, offset uint64) *head {
	h.tensors++
	return h.put(name, uint32(2), uint64(16), uint64(4), uint32(1), offset)
}

// file is the head and so many bytes of tensors.
func (h *head) file(weights int) []byte {
	b := append([]byte("GGUF"), binary.LittleEndian.AppendUint32(nil, h.version)...)
	b = binary.LittleEndian.AppendUint64(b, h.tensors)
	b = binary.LittleEndian.AppendUint64(b, h.keys)
	b = append(b, h.body...)
	if weights > 0 {
		b = append(b, make([]byte, (32-len(b)%32)%32+weights)...)
	}
	return b
}

// llama has the keys of a model of this architecture; sets of them more are added.
func llama(layers, embedding, heads, cached uint32) *head {
	return newHead().key("general.architecture", "llama").key("llama.block_count", layers).key("llama.embedding_length", embedding).
		key("llama.attention.head_count", heads).key("llama.attention.head_count_kv", cached).key("llama.context_length", uint32(131072))
}

func readBytes(t testing.TB, b []byte) Head {
	t.Helper()
	h, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// of gives a model's keys, those of the architecture without its name.
func of(architecture string, pairs ...any) *head {
	h := newHead()
	for i := 0; i < len(pairs); i += 2 {
		h.key(architecture+"."+pairs[i].(string), pairs[i+1])
	}
	return h.key("general.architecture", architecture) // last: writers that sort put it anywhere
}

func TestFootprintIsThatOfKnownModels(t *testing.T) {
	t.Parallel()
	// A layer of six sees everything, as in Gemma 3; here the file says that the others have fewer heads.
	var alternating, zeros []int32
	for i := range 12 {
		alternating = append(alternating, []int32{8, 8, 8, 8, 8, 2}[i%6])
		zeros = append(zeros, []int32{0, 0, 0, 2}[i%4])
	}
	for _, tc := range []struct {
		name string
		head *head
		want int64 // bytes a token at f16
	}{
		{"Llama 3.1 8B", llama(32, 4096, 32, 8), 131072},
		{"Llama 3.1 70B", llama(80, 8192, 64, 8), 327680},
		{"Llama 2 7B, each head its own", of("llama", "block_count", uint32(32), "embedding_length", uint32(4096), "attention.head_count", uint32(32)), 524288},
		{"Qwen2.5 7B", of("qwen2", "block_count", uint32(28), "embedding_length", uint32(3584), "attention.head_count", uint32(28), "attention.head_count_kv", uint32(4)), 57344},
		{"Qwen3 0.6B, heads longer than they would be", of("qwen3", "block_count", uint32(28), "embedding_length", uint32(1024), "attention.head_count", uint32(16),
			"attention.head_count_kv", uint32(8), "attention.key_length", uint32(128), "attention.value_length", uint32(128)), 114688},
		{"DeepSeek V2 Lite, latent attention", of("deepseek2", "block_count", uint32(27), "embedding_length", uint32(2048), "attention.head_count", uint32(16), "attention.head_count_kv", uint32(1),
			"attention.key_length", uint32(576), "attention.value_length", uint32(512), "attention.key_length_mla", uint32(192), "attention.value_length_mla", uint32(128), "attention.kv_lora_rank", uint32(512)),
			27 * (576 + 512) * 2},
		{"heads that differ by layer", of("gemma3", "block_count", uint32(12), "embedding_length", uint32(2560), "attention.head_count", uint32(8), "attention.head_count_kv", alternating,
			"attention.key_length", uint32(256), "attention.value_length", uint32(256), "attention.sliding_window", uint32(1024)), (10*8 + 2*2) * 512 * 2},
		{"recurrent layers by their heads", of("qwen3next", "block_count", uint64(12), "embedding_length", uint32(2048), "attention.head_count", uint32(16), "attention.head_count_kv", zeros,
			"attention.key_length", uint32(256), "attention.value_length", uint32(256)), 3 * 2 * 512 * 2},
		{"recurrent layers by an interval", of("qwen35", "block_count", uint32(12), "embedding_length", uint32(2048), "attention.head_count", uint32(16), "attention.head_count_kv", uint32(2),
			"attention.key_length", uint32(256), "attention.value_length", uint32(256), "full_attention_interval", uint32(4)), 3 * 2 * 512 * 2},
		{"layers that share", of("gemma4", "block_count", uint32(35), "embedding_length", uint32(1536), "attention.head_count", uint32(8), "attention.head_count_kv", uint32(1),
			"attention.key_length", uint32(512), "attention.value_length", uint32(512), "attention.shared_kv_layers", uint32(20)), 15 * 1024 * 2},
		{"all recurrent", of("mamba", "block_count", uint32(64), "embedding_length", uint32(2560), "attention.head_count", uint32(0)), 0},
		{"an encoder", of("nomic-bert", "block_count", uint32(12), "embedding_length", uint32(768), "attention.head_count", uint32(12)), 0},
		{"a projector", of("clip", "vision.block_count", uint32(27), "vision.embedding_length", uint32(1152), "vision.attention.head_count", uint32(16)), 0},
		{"numbers of other types", of("llama", "block_count", uint16(2), "embedding_length", int32(64), "attention.head_count", int8(4), "attention.head_count_kv", int16(2)), 2 * 2 * 32 * 2},
		{"other architectures' keys beside its own", llama(32, 4096, 32, 8).key("clip.block_count", float32(3)).key("x.llama.block_count", uint32(7)).key("y.attention.head_count_kv", []string{"a"}), 131072},
		{"a part that says nothing", newHead().key("split.no", uint16(1)), 0},
	} {
		h := readBytes(t, tc.head.tensor("a", 0).file(1000))
		if f := h.Footprint(F16); f.PerToken != tc.want || f.Weights != 1000 {
			t.Errorf("%s: %+v, want %d a token", tc.name, f, tc.want)
		}
	}
}

func TestTheCacheMayBeQuantized(t *testing.T) {
	t.Parallel()
	h := readBytes(t, llama(32, 4096, 32, 8).file(64))
	for cache, want := range map[CacheType]int64{F16: 131072, Q8: 69632, Q4: 36864, "": 131072, "f32?": 131072} {
		if f := h.Footprint(cache); f != (cluster.Footprint{Weights: 64, PerToken: want, Context: 131072}) {
			t.Errorf("%q: %+v", cache, f)
		}
	}
}

func TestWeightsBeginWhereTheHeadEnds(t *testing.T) {
	t.Parallel()
	for _, version := range []uint32{2, 3} {
		h := llama(1, 64, 1, 1).key("tokenizer.ggml.tokens", []string{"a", "", strings.Repeat("long", 99999)}).
			key("tokenizer.chat_template", strings.Repeat("x", 70000)).key("general.alignment", uint32(4096)).
			key("tokenizer.ggml.add_bos_token", true).key("llama.rope.freq_base", float32(1)).key("tokenizer.ggml.token_type", make([]int32, 5000))
		h.version = version
		h.tensor("a", 0).tensor("b", 8192)
		b := h.file(0)
		b = append(b, make([]byte, (4096-len(b)%4096)%4096+12345)...)
		if got := readBytes(t, b); got.Weights != 12345 || got.Architecture != "llama" {
			t.Errorf("version %d: %+v", version, got)
		}
	}
}

func TestADamagedFileIsAnError(t *testing.T) {
	t.Parallel()
	with := func(change func(*head)) []byte {
		h := llama(2, 64, 2, 2)
		change(h)
		return h.file(100)
	}
	array := func(kind uint32, n uint64) []byte {
		return with(func(h *head) { h.keys++; h.put("k", uint32(typeArray), kind, n) })
	}
	whole := with(func(h *head) { h.tensor("a", 0).tensor("b", 64) })
	for _, tc := range []struct {
		name string
		file []byte
		want string
	}{
		{"nothing", nil, "cut off"},
		{"another format", []byte("PK\x03\x04 and what comes behind it"), "begins otherwise"},
		{"version 1", append([]byte("GGUF\x01\x00\x00\x00"), make([]byte, 99)...), "version 1"},
		{"big-endian", append([]byte("GGUF\x00\x00\x00\x03"), make([]byte, 99)...), "big-endian"},
		{"cut off in the head", whole[:200], "cut off"},
		{"cut off in the tensors", whole[:len(whole)-50], "cut off"},
		{"many keys", with(func(h *head) { h.keys = 1 << 40 }), "too many"},
		{"more keys than there are", with(func(h *head) { h.keys += 5000 }), "cut off"},
		{"many tensors", with(func(h *head) { h.tensors = 1 << 62 }), "too many"},
		{"a long key", with(func(h *head) { h.keys++; h.put(uint64(1 << 63)) }), "cut off"},
		{"a long text", with(func(h *head) { h.keys++; h.put("k", uint32(typeString), uint64(1<<63)) }), "cut off"},
		{"a long array", array(typeUint64, 1<<61), "cut off"},
		{"a long array of texts", array(typeString, 1<<62), "cut off"},
		{"an array of arrays", array(typeArray, 1), "unknown type 9"},
		{"an array of nothing known", array(99, 1), "unknown type 99"},
		{"an unknown type", with(func(h *head) { h.keys++; h.put("k", uint32(13)) }), "unknown type 13"},
		{"a tensor of many dimensions", with(func(h *head) { h.tensors++; h.put("t", uint32(1<<32-1)) }), "cut off"},
		{"a tensor behind the end", with(func(h *head) { h.tensor("a", 1<<63) }), "cut off"},
		{"no alignment", with(func(h *head) { h.key("general.alignment", uint32(0)) }), "multiples of 0"},
		{"a large alignment", with(func(h *head) { h.key("general.alignment", uint32(1<<31)) }), "general.alignment"},
		{"a key twice", with(func(h *head) { h.key("llama.block_count", uint32(3)) }), "twice"},
		{"the architecture is a number", with(func(h *head) { h.key("general.architecture", uint32(3)) }), "no text"},
		{"layers without number", of("a", "block_count", float32(2)).file(0), "not one whole number"},
		{"many layers", of("a", "block_count", uint64(1<<63)).file(0), "block_count"},
		{"less than no heads", of("a", "block_count", uint32(1), "attention.head_count", int32(-1)).file(0), "head_count"},
		{"too few for the layers", of("a", "block_count", uint32(3), "attention.head_count", []int32{1, 2}).file(0), "2 whole numbers for 3 layers"},
		{"a cache that no machine has", of("a", "block_count", uint32(4096), "attention.head_count", uint32(65536), "attention.key_length", uint32(1<<24)).file(0), "in the cache"},
		{"a long context", of("a", "context_length", uint64(1<<40)).file(0), "context_length"},
		{"too many of a sort", with(func(h *head) {
			for i := range 100 {
				h.key(fmt.Sprint(i, ".block_count"), uint32(1))
			}
		}), "more than 64"},
	} {
		_, err := Read(bytes.NewReader(tc.file), int64(len(tc.file)))
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	for n := range whole {
		if _, err := Read(bytes.NewReader(whole[:n]), int64(n)); n < len(whole)-100+64 && !errors.Is(err, ErrFormat) {
			t.Errorf("%d bytes of it: %v", n, err)
		}
		if _, err := Read(bytes.NewReader(whole[:n]), int64(len(whole))); n < len(whole)-100-32 && !errors.Is(err, ErrFormat) {
			t.Errorf("%d bytes of it, which said to be more: %v", n, err)
		}
	}
}

// wide is a file that is larger than any: its head, and then texts of 1016 zeros.
type wide struct {
	head, behind []byte
	read         int64 // how far it was read
}

func (w *wide) ReadAt(b []byte, at int64) (int, error) {
	for n := 0; n < len(b); {
		if p := at + int64(n); p < int64(len(w.head)) {
			n += copy(b[n:], w.head[p:])
		} else {
			n += copy(b[n:], w.behind[(p-int64(len(w.head)))%1024:])
		}
	}
	w.read = max(w.read, at+int64(len(b)))
	return len(b), nil
}

func TestNoFileIsReadWholeOrCostsMemory(t *testing.T) {
	const size = 1 << 42
	good := llama(32, 4096, 32, 8).tensor("a", 0)
	texts := llama(32, 4096, 32, 8)
	texts.keys++
	texts.put("k", uint32(typeArray), uint32(typeString), uint64(1<<40))
	long := llama(32, 4096, 32, 8)
	long.keys++
	long.put("k", uint32(typeString), uint64(1<<40))
	layers := of("a", "block_count", uint32(1))
	layers.keys++
	layers.put("a.attention.head_count", uint32(typeArray), uint32(typeUint8), uint64(100<<20))
	for _, tc := range []struct {
		name string
		head *head
		want string
		most int64
	}{
		{"sound", good, "", 128 << 10},
		{"endless texts", texts, "more than 128 MiB", maxHead},
		{"a text longer than a head", long, "more than 128 MiB", 128 << 10},
		{"numbers for more layers than there are", layers, "", maxHead},
	} {
		w := &wide{head: tc.head.file(0), behind: append(binary.LittleEndian.AppendUint64(nil, 1016), make([]byte, 1016)...)}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Read(w, size)
		runtime.ReadMemStats(&after)
		if tc.name != "sound" && (!errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tc.want)) || tc.name == "sound" && err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if w.read > tc.most {
			t.Errorf("%s: %d bytes were read", tc.name, w.read)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
			t.Errorf("%s: it took %d bytes", tc.name, took)
		}
	}
}

func TestAReadersErrorIsNotTheFormats(t *testing.T) {
	t.Parallel()
	b := llama(32, 4096, 32, 8).file(100)
	broken := errors.New("disk is broken")
	if _, err := Read(brokenAt{bytes.NewReader(b), 40, broken}, int64(len(b))); !errors.Is(err, broken) || errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}

type brokenAt struct {
	io.ReaderAt
	at  int64
	err error
}

func (f brokenAt) ReadAt(b []byte, at int64) (int, error) {
	if at+int64(len(b)) > f.at {
		n, _ := f.ReaderAt.ReadAt(b[:max(0, f.at-at)], at)
		return n, f.err
	}
	return f.ReaderAt.ReadAt(b, at)
}

func TestTheEnginesModelsAreRead(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("OLLAMAMAX_ENGINE")
	if dir == "" {
		t.Skip("OLLAMAMAX_ENGINE is not set: make engine")
	}
	for _, name := range []string{"sentence", "noise", "embed"} {
		f, err := os.Open(filepath.Join(dir, name+".gguf"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		h, err := Read(f, info.Size())
		if err != nil {
			t.Fatal(err)
		}
		// Their writer makes heads of 64.
		if p := h.Footprint(F16); h.Architecture != "llama" || p.Context != 4096 || p.PerToken == 0 || p.PerToken%(2*2*64) != 0 ||
			p.Weights < info.Size()/2 || p.Weights >= info.Size() {
			t.Errorf("%s: %+v", name, p)
		}
		t.Logf("%s, %d bytes: %+v", name, info.Size(), h.Footprint(F16))
	}
}

func FuzzRead(f *testing.F) {
	f.Add(llama(32, 4096, 32, 8).tensor("a", 0).file(100))
	f.Add(of("a", "block_count", uint32(3), "attention.head_count", []int32{1, 2, 3}).key("t", []string{"x", "y"}).file(0))
	f.Add(newHead().key("general.alignment", uint32(64)).tensor("a", 0).tensor("b", 64).file(65))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Error(err)
			}
			return
		}
		for _, cache := range []CacheType{F16, Q8, Q4} {
			if p := h.Footprint(cache); p.Weights < 0 || p.Weights > int64(len(b)) || p.PerToken < 0 || p.Context < 0 || p.Memory(p.Context) < 0 {
				t.Errorf("%+v", p)
			}
		}
	})
}
