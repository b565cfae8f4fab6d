//go:build tools

// Package brokers pins the versions of nsqd and nsqlookupd that the interop tests run against.
package brokers

import (
	_ "github.com/nsqio/nsq/apps/nsqd"
	_ "github.com/nsqio/nsq/apps/nsqlookupd"
)
