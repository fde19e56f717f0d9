//go:build tools

// Package tools names the one program that this module pins; `go build` of its import path makes it.
package tools

import _ "github.com/cometbft/cometbft/cmd/cometbft"
