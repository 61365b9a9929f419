package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ollamamax/ollamamax/internal/api"
)

// memberCommands are those that change who belongs and who leads.
func memberCommands() []*cobra.Command {
	node := func(name, tail string) string { return "/api/v1/nodes/" + url.PathEscape(name) + tail }
	return []*cobra.Command{
		tokenCommand(),
		actCommand("drain NODE", "Send a node no new work, and let what it has end or go on elsewhere", 1, "one NODE", func(ctx context.Context, c *api.Client, args []string) (string, error) {
			_, err := c.Do(ctx, http.MethodPost, node(args[0], "/drain"), nil)
			return "draining " + args[0], err
		}),
		actCommand("undrain NODE", "Send a drained node work again", 1, "one NODE", func(ctx context.Context, c *api.Client, args []string) (string, error) {
			_, err := c.Do(ctx, http.MethodPost, node(args[0], "/undrain"), nil)
			return args[0] + " takes work", err
		}),
		actCommand("remove NODE", "End a node's membership for ever", 1, "one NODE", func(ctx context.Context, c *api.Client, args []string) (string, error) {
			_, err := c.Do(ctx, http.MethodDelete, node(args[0], ""), nil)
			return "removed " + args[0] + "; it can come back only with a token and an empty data directory", err
		}),
		actCommand("leave", "End the membership of the node that is asked", 0, "no arguments", func(ctx context.Context, c *api.Client, _ []string) (string, error) {
			_, err := c.Do(ctx, http.MethodPost, "/api/v1/cluster/leave", nil)
			return "left; this node serves from its own engine alone now", err
		}),
		actCommand("leader NODE", "Hand the leadership to a voter", 1, "one NODE", func(ctx context.Context, c *api.Client, args []string) (string, error) {
			_, err := c.Do(ctx, http.MethodPost, "/api/v1/cluster/leader", api.NodeName{Node: args[0]})
			return args[0] + " leads", err
		}),
	}
}

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make, list and revoke tokens that admit nodes", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var ttl time.Duration
	create := actCommand("create", "Make a token and print it alone on its line", 0, "no arguments", func(ctx context.Context, c *api.Client, _ []string) (string, error) {
		body, err := c.Do(ctx, http.MethodPost, "/api/v1/tokens", api.TokenRequest{TTL: ttl.String()})
		if err != nil {
			return "", err
		}
		var t api.Token
		if err := json.Unmarshal(body, &t); err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		return t.Token, nil
	})
	create.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long it admits nodes")
	cmd.AddCommand(create,
		listCommand("list", "List the tokens that admit nodes", "/api/v1/tokens", func(w *tabwriter.Writer, l api.Tokens) {
			fmt.Fprintln(w, "ID\tEXPIRES")
			for _, t := range l.Tokens {
				fmt.Fprintf(w, "%s\t%s\n", t.ID, t.ExpiresAt.Format(time.RFC3339))
			}
		}),
		actCommand("revoke ID", "Revoke a token", 1, "one ID", func(ctx context.Context, c *api.Client, args []string) (string, error) {
			_, err := c.Do(ctx, http.MethodDelete, "/api/v1/tokens/"+url.PathEscape(args[0]), nil)
			return "revoked " + args[0], err
		}))
	return cmd
}
