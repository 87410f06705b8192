package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Bounds of what one configuration may read.
const (
	fileBytesMax    = 4 << 20
	filesMax        = 4096
	includeDepthMax = 16
)

// Load reads the configuration file name and what it includes. Faults of the
// content come as Errors, one entry per fault; the Config is nil then.
func Load(name string) (*Config, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find the current directory: %w", err)
	}
	return load(os.DirFS("/"), filepath.ToSlash(dir), name)
}

// LoadFS is Load for a file system whose root is fsys; a relative name counts
// from that root.
func LoadFS(fsys fs.FS, name string) (*Config, error) { return load(fsys, "/", name) }

func load(fsys fs.FS, dir, name string) (*Config, error) {
	l := &loader{fsys: fsys, cfg: &Config{File: name, dir: dir}, first: map[string]Pos{}}
	l.cfg.Path = l.cfg.abs(name)
	text, err := l.read(l.cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	l.parse(name, text)
	if !l.broken {
		check(l.cfg, &l.report)
	}
	if err := l.report.err(); err != nil {
		return nil, err
	}
	l.cfg.Warnings = l.report.warnings
	sortByPlace(l.cfg.Warnings)
	return l.cfg, nil
}

// abs returns the full path of a file name found in a Pos.
func (c *Config) abs(name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(c.dir, name)
}

// loader is one run of Load over a file and its includes.
type loader struct {
	fsys   fs.FS
	cfg    *Config
	report report
	broken bool           // the text could not be followed: checks of the whole would mislead
	first  map[string]Pos // where each thing that may be given once was given
	open   []string       // files being parsed, outermost first
	files  int
}

// parse reads one file's text into the Config.
func (l *loader) parse(name, text string) {
	l.files++
	l.open = append(l.open, l.cfg.abs(name))
	p := &parser{loader: l, file: name, src: text, toks: tokenize(text)}
	p.parseFile()
	l.open = l.open[:len(l.open)-1]
}

// read returns the text of the file with this absolute path.
func (l *loader) read(abs string) (string, error) {
	file, err := l.fsys.Open(fsName(abs))
	if err != nil {
		return "", err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, fileBytesMax+1))
	if err != nil {
		return "", err
	}
	if len(data) > fileBytesMax {
		return "", fmt.Errorf("%s: larger than %d bytes", abs, fileBytesMax)
	}
	return string(data), nil
}

// fsName turns an absolute path into the rootless form of package fs.
func fsName(abs string) string {
	if name := strings.TrimPrefix(path.Clean(abs), "/"); name != "" {
		return name
	}
	return "."
}

// include reads the files pattern names, sorted. A relative pattern counts from
// the directory of the file that includes it. A pattern with wildcards may
// match nothing.
func (l *loader) include(pos Pos, pattern string) {
	if !path.IsAbs(pattern) {
		pattern = path.Join(path.Dir(pos.File), pattern)
	}
	names, err := l.glob(pattern)
	if err != nil || len(names) == 0 && !hasMeta(pattern) {
		l.report.errorf(pos, "Failed to open include file '%s'.", pattern)
		return
	}
	for _, name := range names {
		l.includeFile(pos, name)
	}
}

func (l *loader) includeFile(pos Pos, name string) {
	switch {
	case slices.Contains(l.open, l.cfg.abs(name)):
		l.report.errorf(pos, "file '%s' includes itself.", name)
		return
	case len(l.open) >= includeDepthMax:
		l.report.errorf(pos, "include files are nested more than %d deep.", includeDepthMax)
		return
	case l.files >= filesMax:
		l.report.errorf(pos, "more than %d include files.", filesMax)
		return
	}
	text, err := l.read(l.cfg.abs(name))
	if err != nil {
		l.report.errorf(pos, "Failed to open include file '%s': %v.", name, cause(err))
		return
	}
	l.parse(name, text)
}

// cause strips the rootless path an fs error names beside the reason.
func cause(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}

// glob is glob(3): sorted, and hidden files match only a pattern that asks.
func (l *loader) glob(pattern string) ([]string, error) {
	matches, err := fs.Glob(l.fsys, fsName(l.cfg.abs(pattern)))
	if err != nil {
		return nil, err
	}
	wantHidden := strings.HasPrefix(path.Base(pattern), ".")
	var names []string
	for _, match := range matches {
		if wantHidden || !strings.HasPrefix(path.Base(match), ".") {
			names = append(names, l.displayName(pattern, "/"+match))
		}
	}
	slices.Sort(names)
	return names, nil
}

// displayName names a match the way its pattern was written: relative to the
// same directory.
func (l *loader) displayName(pattern, abs string) string {
	if path.IsAbs(pattern) {
		return abs
	}
	if l.cfg.dir == "/" {
		return strings.TrimPrefix(abs, "/")
	}
	if rel, ok := strings.CutPrefix(abs, l.cfg.dir+"/"); ok {
		return rel
	}
	return abs
}

func hasMeta(pattern string) bool { return strings.ContainsAny(pattern, `*?[\`) }
