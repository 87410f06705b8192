// Package replica runs one replicated resource: it joins the state machine of
// replica/core with backing disks (replica/disk), their metadata
// (replica/meta), the way to the peer (replica/link) and the clients of its
// volumes.
//
// It decides nothing about replication: what must happen is the core's
// business, and this package makes it happen and reports how it ended. It does
// not speak NBD, read configuration files, elect anybody or write status
// files; cmd/replicad joins it with the packages that do.
//
// # The guarded node
//
// There is no event loop. Whoever brings events (a client connection's reader,
// a link reader, a disk worker) takes the resource's lock, steps the core with
// all of them, and lets the lock go; a hand-over to another goroutine would cost
// more than the work at queue depth 1. One round of a batch is:
//
//	lock   step the core; queue messages, metadata writes, log lines; turn gates
//	unlock kick the link, then do what may run in any order: short disk
//	       operations right here, longer ones on a worker, answers to clients
//
// Operations done right here bring new events, and the round repeats until
// there are none. Actions whose order counts are performed under the lock, so
// they happen in the order the core emitted them whichever goroutine carried
// the event; the lock is never held over I/O. The peer hears of a write before
// the local disk is asked: its way is the longer one.
//
// # Who owns which goroutine
//
//	goroutine          number         waits for            ends when
//	client reader      caller's       client, admission    its client does (not ours)
//	disk worker        n per volume   workQueue            queue ended and empty
//	metadata writer    1 per volume   metaQueue            queue ended and empty
//	link supervisor    1              the core's wishes    done; joins the readers
//	data reader        1 per session  socket, payload pool session closed
//	control reader     1 per session  socket only          session closed
//	link's own         see link       socket               link closed by the supervisor
//	drop               1 per ActDrop  flush, dropGrace     session closed
//	alarm              1              timer                done
//	sent notifier      1              link's writer        done
//	logger             1              the log              done, after the last line
//	disk watcher       1              timer, stat(2)       done
//	handler runner     1              handler's process    done (kills the handler)
//	revoker            1 per demotion the owner            owner returns, done
//
// "done" is the context that Close ends after the core has stopped.
//
// # Who may wait for what
//
// A client's reader waits for admission; nothing else inside waits for space,
// because admission bounds requests and bytes, and the payload pool bounds what
// the peer sends. The control reader and the alarm do no disk operation at all,
// so acknowledgements and pings get through a throttled page cache. The data
// reader waits for payload buffers, which holds back the peer; buffers of
// arrived data are freed by disk writes alone, buffers of data read for the peer
// by its reading, and the two have budgets of their own, so that two nodes
// never wait for each other. Nobody waits for a slow peer: what a socket does
// not take at once is left to the link's writer.
//
// # Locks
//
// Resource.mu comes first; under it the short locks of the buffer table, the
// work queue, the metadata queues and the link's outbox may be taken. None of
// those is held while another lock is taken. A callback of the link takes no
// Resource.mu.
package replica
