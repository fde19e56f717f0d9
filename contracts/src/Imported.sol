// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

// Foreign contracts that the DAO deploys as they are: imported so that forge builds them and export.py finds their ABI and bytecode.
// forge-lint: disable-next-line(unused-import)
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
