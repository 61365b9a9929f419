package enginetest

import "encoding/json"

// Replaced reads JSON for a comparison: with sees every member of its objects, and what it returns for
// one stands in its place; nil leaves the member out. If it does not replace one, its own members are seen.
func Replaced(text []byte, with func(key string, value any) (other any, replace bool)) (any, error) {
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return nil, err
	}
	walk(v, with)
	return v, nil
}

func walk(v any, with func(key string, value any) (any, bool)) {
	switch v := v.(type) {
	case map[string]any:
		for key, one := range v {
			switch other, replace := with(key, one); {
			case !replace:
				walk(one, with)
			case other == nil:
				delete(v, key)
			default:
				v[key] = other
			}
		}
	case []any:
		for _, one := range v {
			walk(one, with)
		}
	}
}
