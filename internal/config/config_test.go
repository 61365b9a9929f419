package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAFileIsReadOverTheDefaults(t *testing.T) {
	t.Setenv("OMX_TEST_NAME", "from-env")
	c, err := Load(write(t, "node: {name: \"${OMX_TEST_NAME}\"}\np2p: {mdns: false, bootstrap: [/ip4/1.2.3.4/tcp/1/p2p/x]}\ngateway: {timeouts: {read: 5s}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.Name != "from-env" || c.P2P.MDNS || len(c.P2P.Bootstrap) != 1 || len(c.P2P.Listen) != 2 ||
		c.Gateway.Timeouts.Read != 5*time.Second || c.Gateway.Timeouts.Idle == 0 || c.Cluster.Voters != 5 {
		t.Errorf("%+v", c)
	}
	for _, text := range []string{"", "# nothing yet\n", "\n\n"} {
		if c, err = Load(write(t, text)); err != nil || c.Validate() != nil {
			t.Errorf("%q: %v %v", text, err, c.Validate())
		}
	}
}

func TestAMistakeIsNamedWithItsPlace(t *testing.T) {
	for text, want := range map[string]string{
		"node:\n  nmae: x\n":             `[2:3] unknown field "nmae"`,
		"cluster: {voters: many}\n":      "[1:",
		"node: {name: ${OMX_NOT_SET}}\n": "OMX_NOT_SET is not set",
		"api: [":                         "[1:",
	} {
		if _, err := Load(write(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestWhatIsOutOfRangeIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"node.name":                 func(c *Config) { c.Node.Name = "my box" },
		"node.data_dir":             func(c *Config) { c.Node.DataDir = "" },
		"api.listen":                func(c *Config) { c.API.Listen = "11435" },
		"access: {mode: open}":      func(c *Config) { c.API.Listen = ":11435" },
		"access.mode":               func(c *Config) { c.Access.Mode = "ajar" },
		"api.max_connections":       func(c *Config) { c.API.MaxConnections = 0 },
		"cluster.voters":            func(c *Config) { c.Cluster.Voters = 0 },
		"gateway.max_body_bytes":    func(c *Config) { c.Gateway.MaxBodyBytes = 1 },
		"gateway.body_budget_bytes": func(c *Config) { c.Gateway.BodyBudgetBytes = 1 },
		"gateway.timeouts.header":   func(c *Config) { c.Gateway.Timeouts.Header = 0 },
		"engine.slots":              func(c *Config) { c.Engine.Slots = -1 },
		"engine.url":                func(c *Config) { c.Engine.URL = "localhost" },
	} {
		c := Default()
		c.Node.Name = "box"
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := Default()
	c.Node.Name, c.API.Listen, c.Access.Mode = "box", "0.0.0.0:11435", AccessOpen
	if err := c.Validate(); err != nil {
		t.Errorf("open, and written out: %v", err)
	}
}
