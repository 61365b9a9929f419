package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/ollamamax/ollamamax/internal/config"
	"github.com/ollamamax/ollamamax/internal/node"
	"github.com/ollamamax/ollamamax/internal/telemetry"
)

func recoverCommand() *cobra.Command {
	var file, dir string
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Make this machine's node the only voter, when a majority is lost for good",
		Long: "Makes the node of this machine, which must not be running, the only voter of its cluster.\n" +
			"For a majority that is lost for good: the lost voters must not come back with their old data.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			if dir != "" {
				cfg.Node.DataDir = dir
			}
			log, err := telemetry.NewLogger(cfg.Telemetry, os.Stderr)
			if err != nil {
				return err
			}
			if err := node.Recover(cfg.Node.DataDir, log); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "recovered: this node is the only voter. Start it, and remove the lost nodes with `ollamamax remove`")
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `FILE` (YAML)")
	cmd.Flags().StringVar(&dir, "data-dir", "", "`DIR` of the node (default: ~/.ollamamax)")
	return cmd
}
