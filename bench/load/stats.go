package load

import (
	"math"
	"slices"
)

// Quantile returns the smallest of values that at least the share q of them does not exceed (nearest
// rank); NaN of none. It sorts values.
func Quantile[T ~int64 | ~float64](values []T, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	slices.Sort(values)
	rank := int(math.Ceil(q * float64(len(values))))
	return float64(values[min(max(rank, 1), len(values))-1])
}

// Summary is what is told of the rounds of one figure.
type Summary struct {
	Median, Min, Max float64
	N                int // how many rounds have the figure
}

// Summarize leaves out values that are no numbers. The median of an even number is the mean of the
// middle two.
func Summarize(values []float64) Summary {
	var v []float64
	for _, x := range values {
		if !math.IsNaN(x) && !math.IsInf(x, 0) {
			v = append(v, x)
		}
	}
	if len(v) == 0 {
		return Summary{Median: math.NaN(), Min: math.NaN(), Max: math.NaN()}
	}
	slices.Sort(v)
	n := len(v)
	return Summary{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1], N: n}
}
