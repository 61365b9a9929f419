// Package config is the one YAML tree of a node: its defaults, how it is read, what is refused.
//
// Each room owns and documents its own Config; this package only joins them. Unknown keys are
// refused with line and column, ${VAR} is replaced by the environment's value, and what the
// command line says wins over the file.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/ollamamax/ollamamax/internal/access"
	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/engine"
	"github.com/ollamamax/ollamamax/internal/gateway"
	"github.com/ollamamax/ollamamax/internal/mesh"
	"github.com/ollamamax/ollamamax/internal/models"
	"github.com/ollamamax/ollamamax/internal/schedule"
	"github.com/ollamamax/ollamamax/internal/schedule/availability"
	"github.com/ollamamax/ollamamax/internal/telemetry"
)

// Config is the configuration of one node.
type Config struct {
	Node      Node             `yaml:"node"`
	API       API              `yaml:"api"`
	P2P       P2P              `yaml:"p2p"`
	Cluster   Cluster          `yaml:"cluster"`
	Engine    engine.Config    `yaml:"engine"`
	Gateway   Gateway          `yaml:"gateway"`
	Schedule  Schedule         `yaml:"schedule"`
	Models    models.Config    `yaml:"models"`
	Access    Access           `yaml:"access"`
	Telemetry telemetry.Config `yaml:"telemetry"`
}

// Node is what the node is called and where it keeps what it keeps. Needs a restart.
type Node struct {
	// Name for people; default: the machine's host name.
	Name string `yaml:"name"`
	// DataDir holds everything that outlives the process; default: ~/.ollamamax.
	DataDir string `yaml:"data_dir"`
	// Labels describe the node for operators, such as {zone: cellar}. Default none.
	Labels map[string]string `yaml:"labels"`
}

// API is the listener for clients and operators. Needs a restart.
type API struct {
	// Listen is HOST:PORT; default 127.0.0.1:11435.
	Listen string `yaml:"listen"`
	// CORS says which web pages may call.
	CORS access.Config `yaml:"cors"`
	// MaxConnections bounds the connections open at once; default 16384.
	MaxConnections int `yaml:"max_connections"`
}

// P2P is the listener for other nodes. Needs a restart.
type P2P struct {
	mesh.Config `yaml:",inline"`
	// Bootstrap are multiaddrs with /p2p/ and an id of members to connect to, for a node whose
	// remembered addresses may all have changed.
	Bootstrap []string `yaml:"bootstrap"`
}

// Cluster says which cluster the node belongs to. Needs a restart.
type Cluster struct {
	// Join is a token of the cluster to join, for a node that has none yet.
	Join string `yaml:"join"`
	// Voters is how many nodes may vote at most; an even number counts as the odd one below.
	// Default 5.
	Voters int `yaml:"voters"`
}

// Gateway is the clients' front door, with who waits there and for how long.
type Gateway struct {
	gateway.Config `yaml:",inline"`
	// Queue bounds who waits for a slot of an engine.
	Queue schedule.Queue `yaml:"queue"`
	// Stall bounds how long an engine may be silent.
	Stall schedule.Stall `yaml:"stall"`
}

// Schedule says which node serves a request.
type Schedule struct {
	schedule.Config `yaml:",inline"`
	// Availability is when this node's engine is there for the cluster.
	Availability availability.Config `yaml:"availability"`
}

// The values of access.mode.
const (
	AccessAuto = "auto"
	AccessOpen = "open"
)

// Access says who is let in. Needs a restart.
type Access struct {
	// Mode is auto (the default) or open. Auto serves loopback only; open serves whoever reaches
	// the listener.
	Mode string `yaml:"mode"`
}

// Default returns the defaults, which depend on the machine: its host name and home directory.
func Default() Config {
	c := Config{
		API:       API{Listen: "127.0.0.1:11435", MaxConnections: 16384},
		P2P:       P2P{Config: mesh.DefaultConfig()},
		Cluster:   Cluster{Voters: 5},
		Gateway:   Gateway{Config: gateway.Default(), Queue: schedule.DefaultQueue(), Stall: schedule.DefaultStall()},
		Schedule:  Schedule{Config: schedule.Default()},
		Models:    models.Default(),
		Access:    Access{Mode: AccessAuto},
		Telemetry: telemetry.Default(),
	}
	if name, err := os.Hostname(); err == nil {
		c.Node.Name = cluster.CleanName(name)
	}
	if home, err := os.UserHomeDir(); err == nil {
		c.Node.DataDir = filepath.Join(home, ".ollamamax")
	}
	return c
}

// Load reads a file over the defaults. An empty path gives the defaults.
func Load(path string) (Config, error) {
	c := Default()
	if path == "" {
		return c, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	expanded, err := expand(data)
	if err != nil {
		return c, fmt.Errorf("read configuration %s: %w", path, err)
	}
	err = yaml.NewDecoder(bytes.NewReader(expanded), yaml.Strict()).Decode(&c)
	if errors.Is(err, io.EOF) { // an empty file sets nothing
		return Default(), nil
	}
	if err != nil {
		return c, fmt.Errorf("read configuration %s: %s", path, yaml.FormatError(err, false, true))
	}
	return c, nil
}

var variable = regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*\}`)

// expand replaces every ${VAR}. A variable that is not set is an error: an empty secret would open
// what it was to close.
func expand(data []byte) ([]byte, error) {
	var missing []string
	expanded := variable.ReplaceAllFunc(data, func(m []byte) []byte {
		name := string(m[2 : len(m)-1])
		value, ok := os.LookupEnv(name)
		if !ok {
			missing = append(missing, name)
		}
		return []byte(value)
	})
	if missing != nil {
		return nil, fmt.Errorf("environment variable %s is not set", strings.Join(missing, ", "))
	}
	return expanded, nil
}

// Validate returns what is wrong with the configuration, for an operator.
func (c Config) Validate() error {
	if clean := cluster.CleanName(c.Node.Name); c.Node.Name != clean {
		return fmt.Errorf("node.name is %q: give 1 to %d letters, digits, dots, dashes and underscores, such as %s, with --name", c.Node.Name, cluster.MaxName, clean)
	}
	if c.Node.DataDir == "" {
		return errors.New("node.data_dir is empty: name a folder with --data-dir")
	}
	if _, _, err := net.SplitHostPort(c.API.Listen); err != nil {
		return fmt.Errorf("api.listen is %q: write HOST:PORT, such as 127.0.0.1:11435", c.API.Listen)
	}
	if c.API.MaxConnections < 1 {
		return fmt.Errorf("api.max_connections is %d: give at least 1", c.API.MaxConnections)
	}
	switch c.Access.Mode {
	case AccessOpen:
	case AccessAuto:
		if !c.LoopbackOnly() {
			return fmt.Errorf("api.listen is %s, which others can reach, and nobody would be asked who they are: "+
				"listen on 127.0.0.1, or write `access: {mode: open}` in the configuration if everyone on that network may use it", c.API.Listen)
		}
	default:
		return fmt.Errorf("access.mode is %q: use auto or open", c.Access.Mode)
	}
	if c.Cluster.Voters < 1 {
		return fmt.Errorf("cluster.voters is %d: give at least 1", c.Cluster.Voters)
	}
	return errors.Join(c.P2P.Validate(), c.Engine.Validate(), c.Gateway.Validate(), c.Gateway.Queue.Validate(), c.Gateway.Stall.Validate(),
		c.Schedule.Validate(), c.Schedule.Availability.Validate(), c.Models.Validate())
}

// LoopbackOnly tells whether the API can be reached from this machine only.
func (c Config) LoopbackOnly() bool {
	host, _, err := net.SplitHostPort(c.API.Listen)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
