package main

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// playSplitBrain makes both nodes Primary while they are apart. It must be
// found when they meet, and both images be left alone until the operator says
// whose data is discarded.
func (r *round) playSplitBrain(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	r.cable.SetCut(true)
	if err := r.await(r.primary, "WFConnection", func(v view) bool { return v.conn == "WFConnection" }); err != nil {
		return err
	}
	time.Sleep(e.hold)
	if err := r.end(false); err != nil {
		return err
	}
	if err := r.peer.retry("primary", "r0"); err != nil {
		return err
	}
	const mark = "the other Primary was here"
	if err := r.putMark(mark); err != nil {
		return err
	}
	r.cable.SetCut(false)
	if err := r.awaitSplit(); err != nil {
		return err
	}
	if err := r.check(r.primary, nothingLost); err != nil {
		return err
	}
	if found, err := r.hasMark(r.peer, mark); err != nil || !found {
		return fmt.Errorf("what the other Primary wrote is gone before anybody decided: %w", errors.Join(errPatience, err))
	}
	return r.resolve(mark)
}

// resolve discards what the peer wrote while it was alone.
func (r *round) resolve(mark string) error {
	if err := r.peer.retry("secondary", "r0"); err != nil {
		return err
	}
	for _, n := range r.nodes {
		_, _ = n.run("disconnect", "r0") // one of them may be StandAlone already
	}
	if _, err := r.peer.run("connect", "--discard-my-data", "r0"); err != nil {
		return err
	}
	if _, err := r.primary.run("connect", "r0"); err != nil {
		return err
	}
	if err := r.settle(); err != nil {
		return err
	}
	if err := r.check(r.primary, nothingLost); err != nil {
		return err
	}
	if found, err := r.hasMark(r.primary, mark); err != nil || found {
		return fmt.Errorf("the survivor has what was to be discarded: %w", errors.Join(errPatience, err))
	}
	return nil
}

// awaitSplit waits until one of the nodes has found the split brain and left.
func (r *round) awaitSplit() error {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		alone := false
		for _, n := range r.nodes {
			v, err := look(n)
			if err != nil {
				return err
			}
			if strings.HasPrefix(v.conn, "Sync") || v.conn == "Connected" {
				return fmt.Errorf("two nodes that were both Primary are %s", v.conn)
			}
			alone = alone || v.conn == "StandAlone"
		}
		if alone {
			return nil
		}
		time.Sleep(pollPause)
	}
	return errors.New("no node finds the split brain")
}

// putMark writes a text at the end of the peer's device, outside the ledger.
func (r *round) putMark(text string) error {
	c, err := r.peer.open()
	if err != nil {
		return err
	}
	_, err = c.WriteFUA(markBlock(text), int64(c.Size())/4096*4096-4096)
	return errors.Join(err, c.Close())
}

func (r *round) hasMark(n *node, text string) (bool, error) {
	c, err := n.open()
	if err != nil {
		return false, err
	}
	got := make([]byte, 4096)
	_, err = c.ReadAt(got, int64(c.Size())/4096*4096-4096)
	return string(got) == string(markBlock(text)), errors.Join(err, c.Close())
}

func markBlock(text string) []byte {
	b := make([]byte, 4096)
	copy(b, text)
	return b
}
