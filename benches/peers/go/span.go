package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A clock that has been started: the wall's, and what this process has used.
type clock struct {
	wall  time.Time
	usage syscall.Rusage
}

// The fields are those of the harness's span.rs.
type span struct {
	Messages   uint64  `json:"messages"`
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
	Switches   int64   `json:"switches"`
	PeakKiB    uint64  `json:"peak_kib"`
	// Where it was measured.
	Latency *percentiles `json:"latency,omitempty"`
	Memory  *memory      `json:"memory,omitempty"`
}

func start() clock {
	return clock{usage: usage(), wall: time.Now()}
}

func (started clock) stop(messages uint64) span {
	seconds := time.Since(started.wall).Seconds()
	before, after := started.usage, usage()
	return span{
		Messages:   messages,
		Seconds:    seconds,
		CPUSeconds: cpu(after) - cpu(before),
		Switches:   after.Nvcsw + after.Nivcsw - before.Nvcsw - before.Nivcsw,
		// That of getrusage may be the launching process's.
		PeakKiB: statusKiB("VmHWM:"),
	}
}

func usage() syscall.Rusage {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return usage
}

func cpu(usage syscall.Rusage) float64 {
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

// What the system says of this program's memory.
func statusKiB(name string) uint64 {
	status, err := os.ReadFile("/proc/self/status")
	check(err)
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, name) {
			kib, err := strconv.ParseUint(strings.Fields(line)[1], 10, 64)
			check(err)
			return kib
		}
	}
	return 0
}
