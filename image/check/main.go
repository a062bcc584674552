// Parses a Containerfile as BuildKit does and prints its stages and instructions as JSON.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

type stage struct {
	Name, Base   string
	Instructions []string
}

func main() {
	if err := check(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	parsed, err := parser.Parse(file)
	if err != nil {
		return err
	}
	for _, warning := range parsed.Warnings {
		return fmt.Errorf("%s:%v: %s", path, warning.Location, warning.Short)
	}
	var warned error
	lint := linter.New(&linter.Config{Warn: func(rule, _, _, message string, at []parser.Range) {
		warned = fmt.Errorf("%s:%v: %s: %s", path, at, rule, message)
	}})
	parsedStages, _, err := instructions.Parse(parsed.AST, lint)
	if err != nil {
		return err
	}
	if warned != nil {
		return warned
	}
	stages := []stage{}
	for _, found := range parsedStages {
		one := stage{Name: found.Name, Base: found.BaseName}
		for _, command := range found.Commands {
			one.Instructions = append(one.Instructions, fmt.Sprint(command))
		}
		stages = append(stages, one)
	}
	return json.NewEncoder(os.Stdout).Encode(stages)
}
