// Package telemetry makes a node's logger and metrics registry. Each node has its own: several
// nodes live in one process in tests.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Config says what is logged and how.
type Config struct {
	// LogLevel is debug, info (the default), warn or error. Needs a restart.
	LogLevel string `yaml:"log_level"`
	// LogFormat is text (the default) or json. Needs a restart.
	LogFormat string `yaml:"log_format"`
}

// Default returns the defaults.
func Default() Config { return Config{LogLevel: "info", LogFormat: "text"} }

// NewLogger returns a logger that writes to w.
func NewLogger(cfg Config, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return nil, fmt.Errorf("telemetry.log_level is %q: use debug, info, warn or error", cfg.LogLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch strings.ToLower(cfg.LogFormat) {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("telemetry.log_format is %q: use text or json", cfg.LogFormat)
}

// NewRegistry returns a metrics registry that tells of the process itself and of its build.
func NewRegistry(version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ollamamax_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
