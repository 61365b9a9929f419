package load

import (
	"math"
	"testing"
	"time"
)

func TestQuantilesAreNearestRanks(t *testing.T) {
	values := []time.Duration{50, 15, 40, 20, 35}
	for q, want := range map[float64]float64{0: 15, 0.3: 20, 0.4: 20, 0.5: 35, 0.99: 50, 1: 50} {
		if got := Quantile(values, q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := Quantile([]float64{}, 0.5); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestASummaryLeavesOutWhatIsNoNumber(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		values []float64
		want   Summary
	}{
		{[]float64{3, 1, 2}, Summary{Median: 2, Min: 1, Max: 3, N: 3}},
		{[]float64{4, nan, 1, 2, math.Inf(1), 3}, Summary{Median: 2.5, Min: 1, Max: 4, N: 4}},
		{[]float64{7}, Summary{Median: 7, Min: 7, Max: 7, N: 1}},
	} {
		if got := Summarize(c.values); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.values, got, c.want)
		}
	}
	if got := Summarize([]float64{nan}); got.N != 0 || !math.IsNaN(got.Median) {
		t.Errorf("of no number: %+v", got)
	}
}
