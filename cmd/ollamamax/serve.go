package main

import (
	"errors"
	"os"
	"runtime"

	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/spf13/cobra"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/config"
	"github.com/ollamamax/ollamamax/internal/node"
	"github.com/ollamamax/ollamamax/internal/telemetry"
)

func serveCommand() *cobra.Command {
	var file, kind string
	var flags config.Config
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the node of this machine, beside its Ollama",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if flags.Engine.URL != "" && flags.Engine.Command != "" {
				return usageError{errors.New("--engine-url attaches to a running engine and --engine-command runs one: give one of them")}
			}
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			for flag, set := range map[string]func(){
				"name":           func() { cfg.Node.Name = flags.Node.Name },
				"data-dir":       func() { cfg.Node.DataDir = flags.Node.DataDir },
				"listen":         func() { cfg.API.Listen = flags.API.Listen },
				"p2p-listen":     func() { cfg.P2P.Listen = flags.P2P.Listen },
				"join":           func() { cfg.Cluster.Join = flags.Cluster.Join },
				"engine":         func() { cfg.Engine.Kind = cluster.EngineKind(kind) },
				"engine-url":     func() { cfg.Engine.URL, cfg.Engine.Command = flags.Engine.URL, "" },
				"engine-command": func() { cfg.Engine.URL, cfg.Engine.Command = "", flags.Engine.Command },
				"log-level":      func() { cfg.Telemetry.LogLevel = flags.Telemetry.LogLevel },
			} {
				if cmd.Flags().Changed(flag) {
					set()
				}
			}
			log, err := telemetry.NewLogger(cfg.Telemetry, os.Stderr)
			if err != nil {
				return err
			}
			gologshim.SetDefaultHandler(telemetry.Demoted(log.Handler())) // what libp2p would write to stderr
			defer runtime.KeepAlive(thrifty())
			n, err := node.Open(cmd.Context(), cfg, version, log)
			if err != nil {
				return err
			}
			return n.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "configuration `FILE` (YAML)")
	f.StringVar(&flags.Node.Name, "name", "", "the node's `NAME` (default: the host name)")
	f.StringVar(&flags.Node.DataDir, "data-dir", "", "`DIR` for all that the node keeps (default: ~/.ollamamax)")
	f.StringVar(&flags.API.Listen, "listen", "", "`HOST:PORT` for clients and operators (default: 127.0.0.1:11435)")
	f.StringArrayVar(&flags.P2P.Listen, "p2p-listen", nil, "`MULTIADDR` for other nodes; may be given again (default: /ip4/0.0.0.0/tcp/11436 and its QUIC twin)")
	f.StringVar(&flags.Cluster.Join, "join", "", "`TOKEN` of the cluster to join, from 'ollamamax token create' on a member")
	f.StringVar(&kind, "engine", "", "`KIND` of engine: ollama, llama-server or openai (the last two for /v1 only; default: ollama)")
	f.StringVar(&flags.Engine.URL, "engine-url", "", "`URL` of a running engine (default: http://127.0.0.1:11434; llama-server: http://127.0.0.1:8080)")
	f.StringVar(&flags.Engine.Command, "engine-command", "", "`PATH` of an ollama or llama-server to run on a private port")
	f.StringVar(&flags.Telemetry.LogLevel, "log-level", "", "`LEVEL`: debug, info, warn or error")
	return cmd
}

// thrifty leaves half of the cores to the engine, which needs them: a gateway that is woken thousands
// of times a second costs a third less on few. What it returns must be kept while the program
// runs: memory that is never touched, and so never taken, but lets the garbage collector begin its work
// only every 32 MiB, where a small heap would have it work all the time. GOMAXPROCS and GOGC in the
// environment have the last word.
func thrifty() []byte {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
	if os.Getenv("GOGC") != "" {
		return nil
	}
	return make([]byte, 32<<20)
}
