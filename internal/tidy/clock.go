package tidy

import (
	"go/ast"
	"go/token"
	"slices"
)

// onDataPath lists the rooms whose timeouts decide about data and sessions.
// They may show the time of day, and measure with the monotonic clock alone:
// somebody will set the clock back.
var onDataPath = []string{"nbd", "replica", "replica/link", "replica/disk", "internal/daemon"}

// wallMethods of a time.Time leave its monotonic reading behind.
var wallMethods = []string{"Unix", "UnixNano", "UnixMilli", "UnixMicro", "UTC", "Local"}

// wallCalls of package time make times that have none.
var wallCalls = []string{"Date", "Parse", "ParseInLocation", "Unix", "UnixMilli", "UnixMicro"}

// checkClock finds what would make a timeout depend on the time of day.
func checkClock(f *goFile) {
	if f.isTest || !slices.Contains(onDataPath, f.folder) {
		return
	}
	clock := importName(f.file, "time")
	if clock == "" {
		return
	}
	ast.Inspect(f.file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, _ := sel.X.(*ast.Ident)
		ofPackage := x != nil && x.Name == clock
		switch {
		case ofPackage && sel.Sel.Name == "Unix" && literals(call.Args, "1", "0"):
			// The past, as a deadline that wakes at once.
		case ofPackage && slices.Contains(wallCalls, sel.Sel.Name):
			f.at(call.Pos(), "time.%s has no monotonic reading", sel.Sel.Name)
		case !ofPackage && slices.Contains(wallMethods, sel.Sel.Name) && len(call.Args) == 0:
			f.at(call.Pos(), "%s loses the monotonic reading", sel.Sel.Name)
		case sel.Sel.Name == "Round" && literals(call.Args, "0"):
			f.at(call.Pos(), "Round(0) loses the monotonic reading")
		}
		return true
	})
}

// literals reports whether arguments are exactly these numbers.
func literals(args []ast.Expr, want ...string) bool {
	return slices.EqualFunc(args, want, func(arg ast.Expr, want string) bool {
		lit, ok := arg.(*ast.BasicLit)
		return ok && lit.Kind == token.INT && lit.Value == want
	})
}
