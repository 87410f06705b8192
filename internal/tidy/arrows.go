package tidy

import (
	"go/ast"
	"path"
	"slices"
	"strconv"
	"strings"
)

// pure lists the packages that may not reach the outside world.
var pure = []string{"internal/mutant", "bitmap", "wire", "replica/core", "replica/status", "election/vrrp"}

// impureImports bring in the world, other goroutines or chance; what lies
// below them counts too.
var impureImports = []string{
	"net", "os", "io/fs", "sync", "context", "log", "math/rand", "crypto/rand",
	"syscall", "runtime", "unsafe", "golang.org/x/sys",
}

// clockCalls are what package time offers beside arithmetic.
var clockCalls = []string{
	"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTimer", "NewTicker",
}

// arrows says which packages of this module a package may import; what lies
// below a folder has the folder's arrows unless it has its own, and may import
// within itself. A folder that is not listed may import anything but commands.
var arrows = map[string][]string{
	"bitmap":                {"internal/mutant"},
	"wire":                  {"bitmap", "internal/mutant"},
	"config":                {},
	"nbd":                   {"internal/failpoint"},
	"election":              {"config"},
	"replica":               {"wire", "bitmap", "config", "replica/core", "replica/meta", "replica/status", "replica/disk", "replica/link", "internal/failpoint"},
	"replica/core":          {"wire", "bitmap", "internal/mutant"},
	"replica/status":        {},
	"replica/meta":          {"bitmap", "replica/disk", "internal/failpoint", "internal/mutant"},
	"replica/disk":          {"internal/failpoint"},
	"replica/disk/disktest": {"replica/disk"},
	"replica/link":          {"wire", "internal/failpoint"},
	"replica/sim":           {"wire", "bitmap", "replica/core", "replica/meta", "replica/disk", "replica/sim/oracle"},
	"replica/sim/oracle":    {},
	"bench":                 {"nbd"},
	"internal/cable":        {},
	"internal/failpoint":    {},
	"internal/figure":       {},
	"internal/ledger":       {},
	"internal/mutant":       {},
	"internal/reqtool":      {},
	"internal/torture":      {"nbd", "internal/cable", "internal/ctl", "internal/failpoint", "internal/figure", "internal/ledger"},
	"internal/tidy":         {},
}

// commands may import everything; nobody imports them.
const commands = "cmd"

// checkPure holds a pure package to its word. Its tests may do as they like.
func checkPure(f *goFile) {
	if f.isTest || !slices.Contains(pure, f.folder) {
		return
	}
	for _, imp := range f.file.Imports {
		if name := importPath(imp); within(name, impureImports) {
			f.at(imp.Pos(), "pure package imports %s", name)
		}
	}
	clock := importName(f.file, "time")
	ast.Inspect(f.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			f.at(n.Pos(), "pure package starts a goroutine")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == clock && slices.Contains(clockCalls, n.Sel.Name) {
				f.at(n.Pos(), "pure package reads the clock: time.%s", n.Sel.Name)
			}
		}
		return true
	})
}

// checkArrows holds a package to its place. Tests may look further.
func checkArrows(f *goFile) {
	if f.isTest {
		return
	}
	home, allowed := arrowsOf(f.folder)
	for _, imp := range f.file.Imports {
		target, ours := strings.CutPrefix(importPath(imp), module+"/")
		switch {
		case !ours || (home != "" && within(target, []string{home}) && !hasOwnArrows(target, home)):
		case within(target, []string{commands}):
			f.at(imp.Pos(), "import of a command, %s", target)
		case home != "" && !slices.ContainsFunc(allowed, func(a string) bool { return covers(a, target) }):
			f.at(imp.Pos(), "%s may not import %s", home, target)
		}
	}
}

// arrowsOf finds the arrows of the nearest folder that has some.
func arrowsOf(folder string) (home string, allowed []string) {
	for dir := folder; dir != "."; dir = path.Dir(dir) {
		if allowed, ok := arrows[dir]; ok {
			return dir, allowed
		}
	}
	return "", nil
}

// hasOwnArrows reports whether target, below home, is a room of its own.
func hasOwnArrows(target, home string) bool {
	other, _ := arrowsOf(target)
	return other != home
}

// covers reports whether an arrow to a folder allows the import of target: the
// folder itself, or one below it that has no arrows of its own.
func covers(arrow, target string) bool {
	home, _ := arrowsOf(target)
	return target == arrow || (home == arrow && within(target, []string{arrow}))
}

// within reports whether a path is one of the roots or lies below one.
func within(name string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return name == root || strings.HasPrefix(name, root+"/")
	})
}

func importPath(imp *ast.ImportSpec) string {
	name, err := strconv.Unquote(imp.Path.Value)
	if err != nil {
		return imp.Path.Value
	}
	return name
}

// importName is the name that a file gives to a package; empty if it does not
// import it.
func importName(file *ast.File, want string) string {
	for _, imp := range file.Imports {
		switch {
		case importPath(imp) != want:
		case imp.Name != nil:
			return imp.Name.Name
		default:
			return path.Base(want)
		}
	}
	return ""
}
