//go:build race

package e2e

// raceFlag builds the program as the tests are built.
var raceFlag = []string{"-race"}
