// Package tidy holds the repository's own rules: what a compiler and the
// public linters do not check and a reader would otherwise have to. Its test
// runs them over the whole tree. It is for tests only and reads nothing but
// files.
package tidy

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Limits on size.
const (
	funcLinesMax = 70
	fileLinesMax = 600
	textBytesMax = 4 << 20 // larger files are data, not text
)

// module is the import path of the repository's root.
const module = "replicad"

// skipped are folders that hold no sources: of git, of builds, and of tools
// that leave failures beside the tests.
var skipped = []string{".git", "bin", "rapid", "node_modules"}

// Check applies every rule to every file below the root of fsys and returns
// what it found, each as "file:line: what is wrong", in the order of paths.
func Check(fsys fs.FS) ([]string, error) {
	r := &report{}
	documented := map[string]bool{} // folder -> has a package comment
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains(skipped, d.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || d.Name() == ".git" { // in a second worktree it is a file
			return nil
		}
		return checkFile(r, fsys, name, documented)
	})
	if err != nil {
		return nil, fmt.Errorf("walk the tree: %w", err)
	}
	checkPackageComments(r, documented)
	return r.found, nil
}

func checkFile(r *report, fsys fs.FS, name string, documented map[string]bool) error {
	src, err := fs.ReadFile(fsys, name)
	if err != nil {
		return err
	}
	if len(src) > textBytesMax || bytes.IndexByte(src[:min(len(src), 8000)], 0) >= 0 {
		return nil
	}
	checkText(r, name, src)
	if !strings.HasSuffix(name, ".go") {
		return nil
	}
	f, err := parse(r, name, src)
	if err != nil {
		return err
	}
	for _, rule := range goRules {
		rule(f)
	}
	if !f.isTest {
		documented[f.folder] = documented[f.folder] || f.file.Doc != nil
	}
	return nil
}

// goFile is one Go file under inspection.
type goFile struct {
	*report
	name   string // path from the root, with slashes
	folder string
	isTest bool
	file   *ast.File
	fset   *token.FileSet
	lines  int
}

var goRules = []func(*goFile){
	checkSizes, checkPackageName, checkPure, checkArrows, checkErrorf, checkDocs, checkMarkers, checkClock,
}

func parse(r *report, name string, src []byte) (*goFile, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	return &goFile{
		report: r,
		name:   name,
		folder: path.Dir(name),
		isTest: strings.HasSuffix(name, "_test.go"),
		file:   file,
		fset:   fset,
		lines:  bytes.Count(src, []byte("\n")),
	}, nil
}

// at reports a finding at a place in the file.
func (f *goFile) at(pos token.Pos, format string, args ...any) {
	f.line(f.name, f.fset.Position(pos).Line, format, args...)
}

// report gathers findings.
type report struct {
	found []string
}

func (r *report) line(name string, line int, format string, args ...any) {
	r.found = append(r.found, fmt.Sprintf("%s:%d: %s", name, line, fmt.Sprintf(format, args...)))
}
