package gateway

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the gateway. Labels are bounded: routes are patterns, nodes and models are none.
type metrics struct {
	inFlight prometheus.Gauge
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	first    *prometheus.HistogramVec
	attempts *prometheus.CounterVec
	cut      prometheus.Counter
	peers    prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	buckets := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	m := &metrics{
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ollamamax_requests_in_flight", Help: "Client requests being served."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ollamamax_requests_total", Help: "Client requests answered, by route and status; 499: the client left."}, []string{"route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ollamamax_request_duration_seconds", Help: "From a request's arrival to the end of its answer.", Buckets: buckets}, []string{"route"}),
		first: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ollamamax_first_byte_seconds", Help: "From a request's arrival to the first byte of its answer.", Buckets: buckets}, []string{"route"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ollamamax_attempts_total", Help: "Attempts to have a request served, by result."}, []string{"result"}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ollamamax_answers_cut_total", Help: "Answers that broke off after their first byte."}),
		peers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ollamamax_peer_requests_total", Help: "Requests that this node's engine served for other nodes' gateways."}),
	}
	r.MustRegister(m.inFlight, m.requests, m.duration, m.first, m.attempts, m.cut, m.peers)
	return m
}

// statusClientGone is counted for requests whose client left before a status was sent.
const statusClientGone = 499

func (m *metrics) observe(x *exchange, took time.Duration) {
	status := x.status
	if status == 0 {
		status = statusClientGone
	}
	m.requests.WithLabelValues(x.route.path, strconv.Itoa(status)).Inc()
	m.duration.WithLabelValues(x.route.path).Observe(took.Seconds())
	if !x.first.IsZero() {
		m.first.WithLabelValues(x.route.path).Observe(x.first.Sub(x.began).Seconds())
	}
	if x.cut {
		m.cut.Inc()
	}
}
