// Command ollamamax makes the Ollamas of several machines one fault-tolerant cluster. One file
// holds one subcommand; this one only dispatches.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

// exit statuses
const (
	failed     = 1
	wrongUsage = 2
)

// usageError marks an error of the caller's making.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the program at once
	}()
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "ollamamax:", err)
		if errors.As(err, new(usageError)) {
			os.Exit(wrongUsage)
		}
		os.Exit(failed)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "ollamamax",
		Short:         "One fault-tolerant cluster of all your Ollamas",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w: see `%s --help`", err, cmd.CommandPath())}
	})
	cmd.AddCommand(serveCommand(), demoCommand(), statusCommand(), nodesCommand(), requestsCommand(), recoverCommand(), configCommand(), versionCommand())
	cmd.AddCommand(memberCommands()...)
	cmd.AddCommand(modelCommands()...)
	cmd.CompletionOptions.HiddenDefaultCmd = true
	return cmd
}

// noArgs refuses arguments as wrong usage.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%q is not understood: see `%s --help`", args[0], cmd.CommandPath())}
	}
	return nil
}

// exactArgs wants n arguments, which what names.
func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("give %s: see `%s --help`", what, cmd.CommandPath())}
		}
		return nil
	}
}
