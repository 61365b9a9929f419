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
	// Attempts by result.
	answered, failed, abandoned prometheus.Counter
	resumes                     *prometheus.CounterVec
	pause                       prometheus.Histogram
	cut                         prometheus.Counter
	peers                       prometheus.Counter
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
		resumes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ollamamax_resumes_total", Help: "Broken streams, by how they broke and how they went on: raw, template, prefill, replay, finish, or failed."}, []string{"broke", "method"}),
		pause: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ollamamax_resume_pause_seconds", Help: "From a stream's break to the first piece of its rest.", Buckets: buckets}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ollamamax_answers_cut_total", Help: "Answers that broke off after their first byte."}),
		peers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ollamamax_peer_requests_total", Help: "Requests that this node's engine served for other nodes' gateways."}),
	}
	attempts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ollamamax_attempts_total", Help: "Attempts to have a request served, by result."}, []string{"result"})
	m.answered, m.failed, m.abandoned = attempts.WithLabelValues("answered"), attempts.WithLabelValues("failed"), attempts.WithLabelValues("abandoned")
	r.MustRegister(m.inFlight, m.requests, m.duration, m.first, attempts, m.resumes, m.pause, m.cut, m.peers)
	return m
}

// statusClientGone is counted for requests whose client left before a status was sent.
const statusClientGone = 499

// counts are one route's metrics, looked up once.
type counts struct {
	route           string
	duration, first prometheus.Observer
	ok              prometheus.Counter // of status 200
}

func (m *metrics) of(rt *route) *counts {
	return &counts{route: rt.path, duration: m.duration.WithLabelValues(rt.path), first: m.first.WithLabelValues(rt.path),
		ok: m.requests.WithLabelValues(rt.path, "200")}
}

func (m *metrics) observe(x *exchange, took time.Duration) {
	switch x.status {
	case 200:
		x.counts.ok.Inc()
	case 0:
		m.requests.WithLabelValues(x.counts.route, strconv.Itoa(statusClientGone)).Inc()
	default:
		m.requests.WithLabelValues(x.counts.route, strconv.Itoa(x.status)).Inc()
	}
	x.counts.duration.Observe(took.Seconds())
	if !x.first.IsZero() {
		x.counts.first.Observe(x.first.Sub(x.began).Seconds())
	}
	if x.cut {
		m.cut.Inc()
	}
}
