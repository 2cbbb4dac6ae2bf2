# A graph with one derivation of each kind that `broker simulate` tells apart.
let
  drv = name: attrs: derivation ({
    inherit name;
    system = "x86_64-linux";
    builder = "/bin/sh";
    args = [ "-c" "echo $needs > $out" ];
  } // attrs);
in rec {
  source = drv "source.tar.gz" {
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "hello";
    preferLocalBuild = true;
  };
  library = drv "library-1.2" { needs = [ source ]; outputs = [ "out" "dev" ]; enableParallelBuilding = true; };
  compiler = drv "compiler-13" { needs = [ library.dev ]; requiredSystemFeatures = [ "big-parallel" "gccarch-znver3" ]; };
  structured = drv "structured-2" {
    __structuredAttrs = true;
    requiredSystemFeatures = [ "kvm" ];
    needs = [ library ];
  };
  floating = drv "floating-3" {
    __contentAddressed = true;
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
    needs = [ library.out library.dev ];
  };
  text = drv "text" { preferLocalBuild = true; };
  arm = drv "arm-1" { system = "aarch64-linux"; needs = [ source ]; };
  top = drv "top-1.0" { needs = [ compiler structured floating text arm ]; };
}
