//go:build race

package main

// raceDetector: its shadow memory makes figures of memory meaningless.
const raceDetector = true
