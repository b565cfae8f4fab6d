package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/nsqio/go-nsq"
)

// As in the harness's memory.rs, in heartbeats.
const (
	settles = 1
	quiets  = 4
)

type idling struct {
	Handlers          int           `json:"handlers"`
	Burst             int           `json:"burst"`
	HeartbeatInterval time.Duration `json:"heartbeat_interval"`
}

// The fields are those of the harness's memory.rs.
type memory struct {
	Connections int  `json:"connections"`
	Before      held `json:"before"`
	New         held `json:"new"`
	Loaded      held `json:"loaded"`
	Quiet       held `json:"quiet"`
}

type held struct {
	Live     uint64 `json:"live"`
	Resident uint64 `json:"resident"`
}

// What connections hold that have nothing to do: when they are new, right after each has brought many messages at once,
// and a while later. One consumer per topic.
func measureMemory(wanted job, work idling) span {
	nsqds := append([]string{wanted.Nsqd}, wanted.OtherNsqds...)
	heartbeat := work.HeartbeatInterval * time.Millisecond
	config := config(wanted)
	config.MaxInFlight = work.Burst * len(nsqds)
	config.HeartbeatInterval = heartbeat
	var handled uint64
	var started clock
	result := make(chan span, 1)
	measured := memory{Connections: len(nsqds) * len(wanted.Topics), Before: holds()}
	consumers := make([]*nsq.Consumer, 0, len(wanted.Topics))
	for _, topic := range wanted.Topics {
		consumer, err := nsq.NewConsumer(topic, "bench#ephemeral", config)
		check(err)
		consumer.SetLoggerLevel(nsq.LogLevelError)
		consumer.AddConcurrentHandlers(nsq.HandlerFunc(func(*nsq.Message) error {
			switch atomic.AddUint64(&handled, 1) {
			case 1:
				started = start()
			case wanted.Messages:
				result <- started.stop(wanted.Messages)
			}
			return nil
		}), work.Handlers)
		check(consumer.ConnectToNSQDs(nsqds))
		consumers = append(consumers, consumer)
	}
	time.Sleep(settles * heartbeat)
	measured.New = holds()
	burst(wanted, nsqds, work.Burst)
	done := <-result
	measured.Loaded = holds()
	time.Sleep(quiets * heartbeat)
	measured.Quiet = holds()
	runtime.KeepAlive(consumers)
	done.Memory = &measured
	return done
}

// The live heap with the stacks of goroutines, and what of the memory is there for the system.
func holds() held {
	resident := statusKiB("VmRSS:") * 1024
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return held{Live: stats.HeapAlloc + stats.StackInuse, Resident: resident}
}

// Publishes so many messages to each topic at each nsqd, each time all of them at once. A producer of go-nsq would count
// among what is held.
func burst(wanted job, nsqds []string, count int) {
	text, err := os.ReadFile(wanted.Bodies)
	check(err)
	command, err := nsq.MultiPublish("", bytes.Split(text, []byte("\n"))[:count])
	check(err)
	for _, address := range nsqds {
		connection, err := net.Dial("tcp", address)
		check(err)
		_, err = connection.Write(nsq.MagicV2)
		check(err)
		for _, topic := range wanted.Topics {
			command.Params = [][]byte{[]byte(topic)}
			_, err = command.WriteTo(connection)
			check(err)
			// Size, type and OK.
			_, err = io.ReadFull(connection, make([]byte, 10))
			check(err)
		}
		check(connection.Close())
	}
}
