package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

const clientTimeout = 30 * time.Second

// clientFlags are those of every command that asks a running node.
type clientFlags struct {
	api, token string
	json       bool
}

func (f *clientFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.api, "api", envOr("OLLAMAMAX_API", "http://127.0.0.1:11435"), "`URL` of the node to ask")
	cmd.Flags().StringVar(&f.token, "token", os.Getenv("OLLAMAMAX_TOKEN"), "`TOKEN` that says who you are")
	cmd.Flags().Lookup("token").DefValue = "" // --help must not show it
}

func (f *clientFlags) client() (*api.Client, error) {
	c, err := api.NewClient(f.api, f.token, clientTimeout)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

func envOr(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// listCommand is a command that shows one GET of the operators' API: as it came with --json, else
// through print, which writes lines of tab-separated cells.
func listCommand[T any](use, short, path string, print func(*tabwriter.Writer, T)) *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := f.get(cmd.Context(), path)
			if err != nil {
				return err
			}
			if f.json {
				_, err := cmd.OutOrStdout().Write(body)
				return err
			}
			var v T
			if err := json.Unmarshal(body, &v); err != nil {
				return fmt.Errorf("read answer of %s: %w: is it an OllamaMax node?", f.api, err)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
			print(w, v)
			return w.Flush()
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.json, "json", false, "print the API's answer unchanged")
	return cmd
}

func (f *clientFlags) get(ctx context.Context, path string) ([]byte, error) {
	c, err := f.client()
	if err != nil {
		return nil, err
	}
	return c.Do(ctx, http.MethodGet, path, nil)
}

func statusCommand() *cobra.Command {
	return listCommand("status", "Show the cluster and its nodes", "/api/v1/cluster/status", func(w *tabwriter.Writer, s api.Status) {
		leader, quorum := s.Leader, "quorum"
		if leader == "" {
			leader = "none"
		}
		if !s.Quorum {
			quorum = "no quorum: nothing can be changed, prompts are answered"
		}
		fmt.Fprintf(w, "cluster %s, leader %s, term %d, voters %d, %s\n\n", s.ClusterID, leader, s.Term, s.Voters, quorum)
		_ = w.Flush() // its own columns
		printNodes(w, s.Nodes)
		if len(s.Pending) > 0 {
			_ = w.Flush() // its own columns
			fmt.Fprintln(w, "\nSeen on the local network, and no members; they join with a token of `ollamamax token create`:")
			for _, p := range s.Pending {
				fmt.Fprintf(w, "%s\t%s\n", p.ID, strings.Join(p.Addrs, " "))
			}
		}
	})
}

func nodesCommand() *cobra.Command {
	return listCommand("nodes", "List the nodes", "/api/v1/nodes", func(w *tabwriter.Writer, n api.Nodes) {
		printNodes(w, n.Nodes)
	})
}

func requestsCommand() *cobra.Command {
	return listCommand("requests", "List the requests that the asked node is serving, and who waits", "/api/v1/requests", func(w *tabwriter.Writer, r api.Requests) {
		fmt.Fprintln(w, "ID\tPATH\tMODEL\tSTATE\tNODE\tPRIORITY\tAGE\tDEADLINE\tPIECES")
		for _, r := range r.Requests {
			state := r.State
			if r.Place > 0 {
				state = fmt.Sprintf("%s, place %d", state, r.Place)
			}
			if r.Resumes > 0 {
				state += fmt.Sprintf(", resumed %d times", r.Resumes)
			}
			deadline := "none"
			if r.Deadline != nil {
				deadline = "in " + time.Until(*r.Deadline).Round(100*time.Millisecond).String()
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\n", r.ID, r.Path, r.Model, state, r.Node, r.Priority,
				time.Since(r.Since).Round(100*time.Millisecond), deadline, r.Pieces)
		}
	})
}

func printNodes(w *tabwriter.Writer, nodes []*cluster.Node) {
	fmt.Fprintln(w, "NAME\tROLE\tCONDITION\tSTATE\tENGINE\tMODELS\tLOADED\tAPI")
	for _, n := range nodes {
		engine := "none"
		if n.Engine != nil {
			engine = strings.TrimSpace(string(n.Engine.Kind) + " " + n.Engine.Version)
			if n.Engine.Condition != cluster.EngineReady {
				engine += " " + string(n.Engine.Condition) + ": " + n.Engine.Why
			}
		}
		condition := string(n.Condition)
		if n.Why != "" {
			condition += ": " + n.Why
		}
		state := string(n.State)
		if n.Unavailable != "" {
			state += ", " + n.Unavailable
		}
		role := string(n.Role)
		if n.Leader {
			role = "leader"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", n.Name, role, condition, state, engine, len(n.Models), len(n.Loaded), n.APIAddr)
	}
}

func shortDigest(d string) string { return d[:min(12, len(d))] }

// size writes bytes for a person.
func size(n int64) string {
	for _, unit := range []struct {
		name  string
		bytes int64
	}{{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if n >= unit.bytes {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.bytes), unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// actCommand is a command that changes something through one request and says that it is done.
func actCommand(use, short string, args int, what string, act func(context.Context, *api.Client, []string) (string, error)) *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  exactArgs(args, what),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			done, err := act(cmd.Context(), c, args)
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), done)
			}
			return err
		},
	}
	f.add(cmd)
	return cmd
}
