package main

import (
	"encoding/binary"
	"sort"
	"sync"
	"syscall"
	"time"

	"github.com/nsqio/go-nsq"
)

// As in the harness's latency.rs.
const warmUp = 2

// The fields are those of the harness's latency.rs.
type percentiles struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// Handles what is published meanwhile. Each body begins with the time at which it was published.
func measureLatency(wanted job, work latency) span {
	config := config(wanted)
	config.MaxInFlight = work.MaxInFlight
	if work.OutputBufferTimeout != nil {
		config.OutputBufferTimeout = time.Duration(*work.OutputBufferTimeout) * time.Millisecond
	}
	var lock sync.Mutex
	blocks := work.Block != nil
	left := work.Rate / warmUp
	var started clock
	nanoseconds := make([]int64, 0, wanted.Messages)
	result := make(chan span, 1)
	return run(wanted, config, handlers, result, func(message *nsq.Message) error {
		lock.Lock()
		if blocks && left == 0 {
			blocks = false
			lock.Unlock()
			// Unlike time.Sleep it blocks the thread, as a call of C would.
			pause := syscall.NsecToTimespec(*work.Block * 1e6)
			for syscall.Nanosleep(&pause, &pause) == syscall.EINTR {
			}
			return nil
		}
		defer lock.Unlock()
		if left > 0 {
			left--
			return nil
		}
		if uint64(len(nanoseconds)) == wanted.Messages {
			return nil
		}
		if len(nanoseconds) == 0 {
			started = start()
		}
		published := int64(binary.BigEndian.Uint64(message.Body))
		nanoseconds = append(nanoseconds, time.Now().UnixNano()-published)
		if uint64(len(nanoseconds)) == wanted.Messages {
			measured := started.stop(wanted.Messages)
			measured.Latency = percentilesOf(nanoseconds)
			result <- measured
		}
		return nil
	})
}

func percentilesOf(nanoseconds []int64) *percentiles {
	sort.Slice(nanoseconds, func(a, b int) bool { return nanoseconds[a] < nanoseconds[b] })
	at := func(part float64) float64 {
		return float64(nanoseconds[int(float64(len(nanoseconds)-1)*part)]) / 1e3
	}
	return &percentiles{P50: at(0.5), P99: at(0.99), P999: at(0.999), Max: at(1)}
}
