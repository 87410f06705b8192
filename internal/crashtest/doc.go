// Package crashtest holds tests of whole pairs on machines that lose power: real
// resources of package replica, real metadata, a real link over loopback, and
// disks that keep only what was synced (replica/disk/disktest).
//
// Each node is a machine of its own. When its power goes, its disks stop at
// once, nothing it sends arrives any more, and what its clients were told after
// that moment is not believed. What is left of the resource in this process goes
// on like a dead machine's ghost: it reaches neither disk nor network, and is
// closed. The machine that comes back has what its disks made durable, and of
// each other sector some version that was written since.
//
// TestPower holds what is found then against a book of what clients were told.
// TestLinearizability does the same for reads, with NBD clients and a checker of
// histories. There is no code here beside the tests.
package crashtest
