{
  description = "A small distribution: sources, objects, libraries and an image, some 120 derivations";

  # No inputs: the only program is a busybox that lies beside this file, so that nothing has to be downloaded.
  outputs = { self }:
    let
      system = "x86_64-linux";
      busybox = "${./bin}/busybox";
      upTo = n: builtins.genList (i: i) n;
      run = name: script: attrs: derivation ({
        inherit name system;
        builder = busybox;
        args = [ "sh" "-euc" "bb() { ${busybox} \"$@\"; }\n${script}\n:" ];
      } // attrs);

      object = library: i: run "object-${toString library}-${toString i}" ''
        echo "compiling part ${toString i} of library ${toString library}"
        bb sleep 1
        echo "code ${toString library}.${toString i}" > $out
      '' { };

      library = l: run "library-${toString l}" ''
        echo "linking library ${toString l}"
        bb mkdir -p $out/lib
        bb cat $objects > $out/lib/library-${toString l}.a
      '' { objects = map (object l) (upTo 9); };
    in
    {
      packages.${system}.default = run "image" ''
        echo "putting the image together"
        for l in $libraries; do bb cat $l/lib/*.a; done > $out
      '' { libraries = map library (upTo 12); };
    };
}
