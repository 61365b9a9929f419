package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/ollamamax/ollamamax/internal/api"
	"github.com/ollamamax/ollamamax/internal/cluster"
)

// modelCommands are those about models and where they are.
func modelCommands() []*cobra.Command {
	return []*cobra.Command{
		modelsCommand(),
		pullCommand(),
		placeCommand(),
		actCommand("rm MODEL", "Delete a model on every node", 1, "one MODEL", func(ctx context.Context, c *api.Client, args []string) (string, error) {
			_, err := c.Do(ctx, http.MethodDelete, modelPath(args[0], ""), nil)
			return "removed " + args[0], err
		}),
		actCommand("stop MODEL", "Unload a model from every engine's memory", 1, "one MODEL", func(ctx context.Context, c *api.Client, args []string) (string, error) {
			_, err := c.Do(ctx, http.MethodPost, "/api/generate", map[string]any{"model": args[0], "keep_alive": 0})
			return "stopped " + args[0], err
		}),
		transfersCommand(),
	}
}

func modelPath(name, tail string) string { return "/api/v1/models/" + url.PathEscape(name) + tail }

func modelsCommand() *cobra.Command {
	return listCommand("models", "List the models, where they are and where they are wanted", "/api/v1/models", func(w *tabwriter.Writer, m api.Models) {
		fmt.Fprintln(w, "MODEL\tSIZE\tDIGEST\tWANTED\tNODES")
		for _, m := range m.Models {
			bytes, digest, on := "-", "-", []string{}
			if m.Wanted != nil {
				digest = shortDigest(m.Wanted.Digest)
			}
			if len(m.Replicas) > 0 {
				bytes, digest = size(m.Replicas[0].Size), shortDigest(m.Replicas[0].Of())
			}
			if m.Conflict {
				digest = "conflict"
			}
			for _, r := range m.Replicas {
				at := r.Node
				if m.Conflict {
					at += "=" + shortDigest(r.Of())
				}
				if r.Loaded {
					at += "*"
				}
				if r.Condition == cluster.Dead {
					at += "(dead)"
				} else if r.Damaged {
					at += "(damaged)"
				}
				on = append(on, at)
			}
			if len(on) == 0 {
				on = append(on, "none")
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", m.Name, bytes, digest, wantedText(m.Wanted), strings.Join(on, " "))
		}
	})
}

// wantedText writes what is wanted of a model for a person, such as "2 on alpha,beta disk=ssd pinned".
func wantedText(w *api.Wanted) string {
	if w == nil {
		return "-"
	}
	text := w.Replicas.String()
	if len(w.Nodes) > 0 {
		text += " on " + strings.Join(w.Nodes, ",")
	}
	for _, key := range slices.Sorted(maps.Keys(w.Labels)) {
		text += " " + key + "=" + w.Labels[key]
	}
	if w.Pin {
		text += " pinned"
	}
	if w.Preload {
		text += " preloaded"
	}
	return text
}

func pullCommand() *cobra.Command {
	var replicas string
	var nodes []string
	var insecure bool
	var cmd *cobra.Command
	cmd = actCommand("pull MODEL", "Fetch a model once and spread it over the cluster", 1, "one MODEL", func(ctx context.Context, c *api.Client, args []string) (string, error) {
		wish := api.Download{Nodes: nodes, Stream: true, Insecure: insecure}
		var err error
		if wish.Replicas, err = replicasFlag(cmd, replicas); err != nil {
			return "", err
		}
		shown := newProgress(cmd.ErrOrStderr())
		err = c.Stream(ctx, http.MethodPost, modelPath(args[0], "/download"), wish, shown.record)
		shown.end()
		switch {
		case ctx.Err() != nil:
			err = fmt.Errorf("pull %s: interrupted: what was agreed goes on, see `ollamamax transfers`", args[0])
		case err == nil && !shown.success:
			err = fmt.Errorf("pull %s: the node ended its answer before the model was there: it goes on, see `ollamamax transfers`; or pull it again", args[0])
		}
		return "pulled " + args[0], err
	})
	cmd.Flags().StringVar(&replicas, "replicas", "", "`N`, or all: how many nodes are to hold it")
	cmd.Flags().StringSliceVar(&nodes, "nodes", nil, "`A,B`: the only nodes that may hold it")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "the registry may be one without TLS")
	return cmd
}

// replicasFlag reads --replicas; nil when it was not given.
func replicasFlag(cmd *cobra.Command, text string) (*cluster.Replicas, error) {
	if !cmd.Flags().Changed("replicas") {
		return nil, nil
	}
	n, err := cluster.ParseReplicas(text)
	if err != nil {
		return nil, usageError{fmt.Errorf("read --replicas: %w", err)}
	}
	return &n, nil
}

func placeCommand() *cobra.Command {
	var replicas string
	var nodes, labels []string
	var pin, preload bool
	var cmd *cobra.Command
	cmd = actCommand("place MODEL", "Change where a model is held, and how often", 1, "one MODEL", func(ctx context.Context, c *api.Client, args []string) (string, error) {
		var p api.Placement
		var err error
		if p.Replicas, err = replicasFlag(cmd, replicas); err != nil {
			return "", err
		}
		if cmd.Flags().Changed("label") {
			if p.Labels, err = labelsFlag(labels); err != nil {
				return "", err
			}
		}
		if cmd.Flags().Changed("nodes") {
			p.Nodes = &nodes
		}
		if cmd.Flags().Changed("pin") {
			p.Pin = &pin
		}
		if cmd.Flags().Changed("preload") {
			p.Preload = &preload
		}
		if p == (api.Placement{}) {
			return "", usageError{errors.New("nothing is to be changed: give --replicas, --nodes, --label, --pin or --preload")}
		}
		_, err = c.Do(ctx, http.MethodPut, modelPath(args[0], "/placement"), p)
		return "placed " + args[0], err
	})
	cmd.Flags().StringVar(&replicas, "replicas", "", "`N`, or all: how many nodes are to hold it")
	cmd.Flags().StringSliceVar(&nodes, "nodes", nil, "`A,B`: the only nodes that may hold it; \"\": all may")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "`K=V` that a node which holds it must have, instead of those before; \"\": none; may be repeated")
	cmd.Flags().BoolVar(&pin, "pin", false, "keep the replicas that are there, however many are wanted")
	cmd.Flags().BoolVar(&preload, "preload", false, "keep it loaded wherever it is held")
	return cmd
}

// labelsFlag reads the values of --label; a single "" is no label.
func labelsFlag(values []string) (*map[string]string, error) {
	labels := map[string]string{}
	if len(values) == 1 && values[0] == "" {
		return &labels, nil
	}
	for _, text := range values {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return nil, usageError{fmt.Errorf("--label is %q: write it like gpu=yes", text)}
		}
		labels[key] = value
	}
	return &labels, nil
}

func transfersCommand() *cobra.Command {
	return listCommand("transfers", "List the models that are on their way between nodes", "/api/v1/transfers", func(w *tabwriter.Writer, l api.Transfers) {
		fmt.Fprintln(w, "ID\tMODEL\tNODE\tDONE\tRATE\tETA\tSOURCES")
		for _, t := range l.Transfers {
			rate, eta := t.State, "-"
			if t.State == api.TransferRunning {
				rate = size(t.Rate) + "/s"
			}
			if t.ETA != "" {
				eta = t.ETA
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.ID, t.Model, t.Node, share(t.Have, t.Size), rate, eta, sourcesText(t))
		}
		if len(l.Missing) > 0 {
			_ = w.Flush() // its own columns
			fmt.Fprintln(w, "\nNo answer from: "+strings.Join(l.Missing, ", "))
		}
	})
}

// share writes a part of a whole in bytes, and in per cent where the whole is known.
func share(part, whole int64) string {
	if whole <= 0 {
		return size(part)
	}
	return fmt.Sprintf("%s/%s %d%%", size(part), size(whole), int(float64(part)/float64(whole)*100))
}

// sourcesText names the nodes that a transfer's bytes come from, and why one of them gives none.
func sourcesText(t api.Transfer) string {
	var from []string
	for _, s := range t.Sources {
		switch {
		case s.Banned:
			from = append(from, s.Node+"(banned: "+s.Failure+")")
		case s.Failure != "" && !s.Connected:
			from = append(from, s.Node+"("+s.Failure+")")
		default:
			from = append(from, s.Node)
		}
	}
	if t.Upstream {
		from = append(from, "registry")
	}
	if len(from) == 0 {
		return "none"
	}
	return strings.Join(from, " ")
}
